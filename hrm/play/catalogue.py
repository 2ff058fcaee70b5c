"""What the page must know of each model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hrm.data.csv_task import CsvTask
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.data.sudoku.board import BLANK
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.files import read_json
from hrm.inference.halting import CALIBRATION_FILE, calibration_folder
from hrm.model import HRM

PAGE = Path(__file__).with_name("page")
"""The folder of the page's files."""
_EXAMPLES = 16  # generated, of which the page shows one


def about_model(model: HRM, task: PuzzleTask | None, name: str) -> dict[str, Any]:
    """What a host must know of a model, as JSON values: sizes, symbols, the board, the calibrated rule of halting."""
    config = model.config
    symbols = task.symbols if isinstance(task, CsvTask) else {}
    symbols = {text: token for text, token in symbols.items() if token < config.vocab_size}
    characters = [""] * config.vocab_size
    for text, token in symbols.items():
        characters[token] = characters[token] or text
    rows, columns = config.board
    return {
        "name": name,
        "family": config.family,
        "task": None if task is None else task.name,
        "symbols": symbols,
        "characters": characters,
        "rows": rows,
        "columns": columns,
        "box": None if task is None or task.box is None else list(task.box),
        "seq_len": config.seq_len,
        "vocab_size": config.vocab_size,
        "positions": config.positions,
        "hidden_size": config.hidden_size,
        "halt_max_steps": config.halt_max_steps,
        "learns_to_continue": config.learns_to_continue,
        "random_starts": config.has_random_starts,
        "calibrated": None if model.folder is None else _calibrated(model.folder),
    }


def page_model(model: HRM, task: PuzzleTask | None, name: str) -> dict[str, Any]:
    """:func:`about_model`, with a title and an example.

    Args:
        model: the model.
        task: its task.
        name: the model's name.

    Raises:
        InputError: the page cannot show this task.
    """
    if not isinstance(task, Sudoku | Maze):
        kind = "no known task" if task is None else f"the task {task.name}"
        raise InputError(f"{name} has {kind}; the page shows models of Sudoku and of mazes (hrm models lists some)")
    about = about_model(model, task, name)
    kind = "Sudoku" if isinstance(task, Sudoku) else "maze"
    about["title"] = f"{name} ({task.size} × {task.size} {kind})"
    about["example"] = task.format(_example(task))
    return about


def _calibrated(folder: Path) -> dict[str, Any] | None:
    file = calibration_folder(folder) / CALIBRATION_FILE
    values = read_json(file) if file.is_file() else {}
    if not isinstance(values.get("threshold"), int | float):
        return None
    return {"rule": values.get("rule", "margin"), "threshold": values["threshold"]}


def _example(task: Sudoku | Maze) -> np.ndarray:
    """A hard puzzle among some generated ones: few clues, or a long way. The same at each call."""
    rng = np.random.default_rng(2)
    if isinstance(task, Sudoku):
        from hrm.data.sudoku.generator import generate as generate_sudokus

        sudokus = generate_sudokus(_EXAMPLES, task.size, rng)
        return sudokus.inputs[(sudokus.inputs > BLANK).sum(1).argmin()]
    from hrm.data.maze.generator import generate as generate_mazes

    mazes = generate_mazes(_EXAMPLES, task.size, rng, min_path=2)
    return mazes.inputs[mazes.ratings.argmax()]


def unique_names(names: Iterable[str]) -> list[str]:
    """Short names of models, told apart by a number where two are the same."""
    result: list[str] = []
    for name in names:
        short = Path(name).name or name
        same = sum(one == short or one.startswith(f"{short} ") for one in result)
        result.append(f"{short} {same + 1}" if same else short)
    return result

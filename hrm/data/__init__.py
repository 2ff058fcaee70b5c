"""Puzzle data: the format on disk, and the tasks by name."""

from hrm.data.arc import Arc
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.data.task import PuzzleTask
from hrm.errors import InputError

TASKS: dict[str, type[PuzzleTask]] = {task.name: task for task in (Sudoku, Maze, Arc)}
"""The puzzle tasks by name."""


def task_of(vocab_size: int, seq_len: int, name: str | None = None) -> PuzzleTask:
    """The task of this shape: the one of ``name`` (``dataset.json`` names it in our folders), or the one that fits.

    Raises:
        InputError: the name is unknown, or no task has this shape.
    """
    if name is not None and name not in TASKS:
        raise InputError(f"task '{name}' is not known; expected one of {', '.join(TASKS)}")
    for task_type in [TASKS[name]] if name is not None else TASKS.values():
        task = task_type.from_shape(vocab_size, seq_len)
        if task is not None:
            return task
    raise InputError(
        f"vocabulary {vocab_size} with {seq_len} tokens is the shape of no {name or 'known'} task; expected "
        "6, 8, 11 with 16, 36, 81 (sudoku), 6 with n * n, n at least 5 (maze), or 12 with 900 (arc)"
    )

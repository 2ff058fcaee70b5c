"""Pictures of ARC tasks: the demonstrations, and beside each test its solution and the attempts of a submission."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hrm.data.arc import PALETTE, ArcTask, read_grid, read_task
from hrm.errors import InputError
from hrm.inference.draw import font_of, save_png, with_common_palette

_PAPER, _INK, _LINE, _GOOD, _BAD = "#ffffff", "#1f2933", "#7b8794", "#15803d", "#b42318"
_LARGEST_GRID, _LARGEST_CELL = 150, 24  # pixels
_GAP, _TITLE, _TITLE_SIZE = 18, 24, 14


@dataclass(frozen=True)
class _Panel:
    """A grid with its title; ``good`` colours the title green or red. A grid of None is drawn as a question mark."""

    title: str
    grid: np.ndarray | None
    good: bool | None = None


def draw_task(task: ArcTask, submitted: list[dict[str, np.ndarray]]) -> Image.Image:
    """Draw a task in the colours of ARC's editor: a row for each demonstration, then one for each test.

    Args:
        task: a test without a solution has a question mark in its place.
        submitted: for each test its attempts by title, ``[rows, columns]`` each.

    Returns:
        An RGB picture.
    """
    rows = [
        [_Panel(f"demonstration {number}", question), _Panel("output", answer)]
        for number, (question, answer) in enumerate(task.train, 1)
    ]
    for number, ((question, answer), attempts) in enumerate(zip(task.test, submitted, strict=True), 1):
        name = "test" if len(task.test) == 1 else f"test {number}"
        panels = [_Panel(name, question), _Panel("solution", answer)]
        for title, grid in attempts.items():
            right = None if answer is None else np.array_equal(grid, answer)
            verdict = {None: "", True: ": right", False: ": wrong"}[right]
            panels.append(_Panel(f"{title.replace('_', ' ')}{verdict}", grid, right))
        rows.append(panels)
    largest = max(max(panel.grid.shape) for row in rows for panel in row if panel.grid is not None)
    cell = max(4, min(_LARGEST_CELL, _LARGEST_GRID // largest))
    widths = [max(_LARGEST_GRID, *(_size(panel, cell)[0] for row in rows for panel in row))] * max(map(len, rows))
    heights = [_TITLE + max(_size(panel, cell)[1] for panel in row) for row in rows]
    picture = Image.new(
        "RGB", (sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _GAP * (len(heights) + 1)), _PAPER
    )
    draw = ImageDraw.Draw(picture)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for panel, width in zip(row, widths):
            colour = {None: _INK, True: _GOOD, False: _BAD}[panel.good]
            draw.text((left, top), panel.title, fill=colour, font=font_of(_TITLE_SIZE))
            _draw_grid(draw, panel.grid, left, top + _TITLE, cell)
            left += width + _GAP
        top += height + _GAP
    return picture


def _size(panel: _Panel, cell: int) -> tuple[int, int]:
    rows, columns = (2, 2) if panel.grid is None else panel.grid.shape
    return columns * cell + 1, rows * cell + 1


def _draw_grid(draw: ImageDraw.ImageDraw, grid: np.ndarray | None, left: int, top: int, cell: int) -> None:
    if grid is None:
        draw.text((left, top), "?", fill=_LINE, font=font_of(2 * cell))
        return
    for (row, column), colour in np.ndenumerate(grid):
        x, y = left + column * cell, top + row * cell
        draw.rectangle((x, y, x + cell, y + cell), fill=PALETTE[colour], outline=_LINE)


def draw_submission(tasks: Mapping[str, Any], submission: Mapping[str, Any], folder: Path | str) -> list[Path]:
    """Draw each task of an ARC test split with the attempts of a submission.

    Args:
        tasks: the content of ``test_puzzles.json``.
        submission: the content of ``submission.json``, ``{task: [{"attempt_1": grid, ...}, ...]}``, one for each test.
        folder: for ``TASK.png``; it is made if it does not exist.

    Returns:
        The files, in the order of the tasks.

    Raises:
        InputError: a value of ``tasks`` is not a task, or the submission does not fit them.
    """
    folder, files = Path(folder), []
    for name, value in tasks.items():
        task = read_task(name, "", value, f"test_puzzles.json: task {name}")
        attempts = submission.get(name)
        if not isinstance(attempts, list) or len(attempts) != len(task.test):
            raise InputError(f"the submission has no list of {len(task.test)} attempts for the task {name}")
        grids = [{title: read_grid(grid, f"{name}, {title}") for title, grid in one.items()} for one in attempts]
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{name}.png")
        (picture,) = with_common_palette([draw_task(task, grids)])
        save_png(picture, files[-1])
    return files

"""Boards as HTML, for notebooks."""

import html

import numpy as np

from hrm.data.task import PuzzleTask

_THIN, _THICK = "1px solid #c3cad3", "2px solid #1f2933"


def board_html(task: PuzzleTask, tokens: np.ndarray, inputs: np.ndarray) -> str:
    """A board as an HTML table, with the task's colours and thicker lines between boxes.

    Args:
        task: how the cells look.
        tokens: ``[seq_len]`` tokens, a puzzle or an answer.
        inputs: ``[seq_len]`` tokens of the puzzle.
    """
    cells = task.cells(tokens, inputs)
    rows, columns = len(cells), max(len(row) for row in cells)
    box_rows, box_columns = task.box or (rows, columns)
    size = max(8, min(32, 480 // max(rows, columns)))
    lines = []
    for number, row in enumerate(cells):
        top = _THICK if number % box_rows == 0 else _THIN
        texts = []
        for column, cell in enumerate(row):
            left = _THICK if column % box_columns == 0 else _THIN
            style = (
                f"width: {size}px; height: {size}px; padding: 0; text-align: center; border: {_THIN}; "
                f"border-top: {top}; border-left: {left}; background: {cell.background}; color: {cell.foreground}"
            )
            texts.append(f'<td style="{html.escape(style)}">{html.escape(cell.text)}</td>')
        lines.append(f"<tr>{''.join(texts)}</tr>")
    return f'<table style="border-collapse: collapse; border: {_THICK}">{"".join(lines)}</table>'

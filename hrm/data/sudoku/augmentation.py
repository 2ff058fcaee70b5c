"""Equivalent Sudokus: permuted digits, bands, rows, stacks and columns."""

import numpy as np

from hrm.data.sudoku.board import BOXES
from hrm.data.symmetries import Symmetries


def draw_symmetries(size: int, count: int, rng: np.random.Generator) -> Symmetries:
    """Draw ``count`` symmetries of a Sudoku of ``size`` rows.

    Digits, bands, rows in a band, stacks and columns in a stack are permuted. If boxes are square, half of the boards
    are transposed.
    """
    height, width = BOXES[size]
    rows = _shuffled_lines(count, size // height, height, rng)
    columns = _shuffled_lines(count, size // width, width, rng)
    cells = rows[:, :, None] * size + columns[:, None, :]
    if height == width:
        transposed = rng.random(count) < 0.5
        cells[transposed] = columns[transposed][:, None, :] * size + rows[transposed][:, :, None]
    digits = np.tile(np.arange(size + 2, dtype=np.uint8), (count, 1))
    digits[:, 2:] = rng.permuted(digits[:, 2:], axis=1)
    return Symmetries(cells.reshape(count, size * size), digits)


def augment(inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn each puzzle into a random equivalent one, in the same way for question and answer.

    Args:
        inputs, labels: ``[n, seq_len]`` uint8 tokens.
        rng: the source of randomness of :func:`draw_symmetries`.

    Returns:
        Two new arrays of the same shape and dtype.
    """
    count, length = inputs.shape
    symmetries = draw_symmetries(int(length**0.5), count, rng)
    return symmetries.apply(inputs), symmetries.apply(labels)


def _shuffled_lines(count: int, blocks: int, within: int, rng: np.random.Generator) -> np.ndarray:
    """``[count, blocks * within]`` int16: a random order of the blocks of lines, and of the lines in each block."""
    outer = rng.permuted(np.tile(np.arange(blocks, dtype=np.int16), (count, 1)), axis=1)
    inner = rng.permuted(np.tile(np.arange(within, dtype=np.int16), (count, blocks, 1)), axis=2)
    return (outer[:, :, None] * within + inner).reshape(count, blocks * within)

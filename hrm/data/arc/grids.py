"""Grids as tokens, and back."""

import math

import numpy as np

SIDE = 30
"""Rows and columns of the published board, which holds every grid of ARC."""
END, FIRST_COLOUR, COLOURS = 1, 2, 10
VOCAB_SIZE = FIRST_COLOUR + COLOURS


def side_of(seq_len: int) -> int | None:
    """Rows and columns of a board of ``seq_len`` tokens; None if there is no such board."""
    side = math.isqrt(max(0, seq_len))
    return side if side * side == seq_len and 1 <= side <= SIDE else None


def encode(grids: np.ndarray, offsets: np.ndarray | None = None, side: int = SIDE) -> np.ndarray:
    """Tokens of grids of one size.

    Args:
        grids: ``[n, rows, columns]`` uint8 colours.
        offsets: ``[n, 2]``, the row and column of each grid's top left corner on the board; None is 0, 0.
        side: rows and columns of the board; the grids fit into it.

    Returns:
        ``[n, side * side]`` uint8 tokens.
    """
    n, rows, columns = grids.shape
    marked = np.full((n, rows + 1, columns + 1), END, np.uint8)
    marked[:, :rows, :columns] = grids + FIRST_COLOUR
    marked[:, rows, columns] = 0
    boards = np.zeros((n, side + 1, side + 1), np.uint8)  # one more row and column, for markers beyond the board
    if offsets is None:
        boards[:, : rows + 1, : columns + 1] = marked
    else:
        for board, grid, (row, column) in zip(boards, marked, offsets.tolist(), strict=True):
            board[row : row + rows + 1, column : column + columns + 1] = grid
    return boards[:, :side, :side].reshape(n, side * side)


def boards_of(tokens: np.ndarray) -> np.ndarray:
    """``[n, side * side]`` or ``[side * side]`` tokens as ``[n, side, side]``."""
    side = math.isqrt(tokens.shape[-1])
    return tokens.reshape(-1, side, side)


def sizes(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the largest rectangle from the top left that holds only colours, ``[n]`` each.

    ``tokens`` is ``[n, side * side]``, of any integer dtype. Among rectangles of equal area the one with fewer rows is
    taken, as published. Both are 0 where the first token is not a colour.
    """
    boards = boards_of(tokens)
    side = boards.shape[1]
    colour = (boards >= FIRST_COLOUR) & (boards < VOCAB_SIZE)
    lengths = np.where(colour.all(axis=2), side, (~colour).argmax(axis=2))  # number of colours at the start of each row
    widths = np.minimum.accumulate(lengths, axis=1)
    best = (widths * np.arange(1, side + 1)).argmax(axis=1)
    columns = widths[np.arange(len(boards)), best]
    return np.where(columns > 0, best + 1, 0), columns


def crop(tokens: np.ndarray) -> np.ndarray:
    """The grid in ``[side * side]`` tokens: the rectangle of :func:`sizes` in colours 0 to 9; its shape may be 0, 0."""
    rows, columns = (int(size[0]) for size in sizes(tokens))
    return (boards_of(tokens)[0, :rows, :columns] - FIRST_COLOUR).astype(np.uint8)

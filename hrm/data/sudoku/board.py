"""Many boards at once: each cell is a set of digits, kept as the bits of an integer."""

import numpy as np

BOXES = {4: (2, 2), 6: (2, 3), 8: (2, 4), 9: (3, 3), 10: (2, 5), 12: (3, 4), 16: (4, 4)}
"""Rows and columns of a box, by size."""
SIZES = "4, 6, 8, 9, 10, 12 or 16"
"""The sizes in words."""
LARGEST = max(BOXES)

BLANK = 1
"""The token of a blank cell; digit d is token d + 1."""

# A board has axes [bands, rows in a band, stacks, columns in a stack, ...]. These are the axes inside a unit.
UNITS = {"row": (2, 3), "column": (0, 1), "box": (1, 3)}

# The digit of each token as a bit; a blank or a pad has no bit.
MASKS = np.concatenate([[0, 0], 1 << np.arange(LARGEST)]).astype(np.uint16)
# The number of digits in each set.
COUNTS = np.array([bin(mask).count("1") for mask in range(1 << LARGEST)], np.uint8)


_CELLS = (0, 1, 2, 3)  # the axes of a board


def candidates(inputs: np.ndarray, size: int) -> np.ndarray:
    """Tokens ``[n, size²]`` -> the digits that each cell may have by itself, ``[size², n]``: all, for a blank."""
    masks = MASKS[inputs]
    masks[inputs <= BLANK] = (1 << size) - 1
    return masks.T


def as_units(cells: np.ndarray, size: int) -> np.ndarray:
    """``[size², n]`` -> ``[bands, rows, stacks, columns, n]``, the axes of UNITS."""
    height, width = BOXES[size]
    return cells.reshape(width, height, height, width, -1)


def once_twice(boards: np.ndarray, axes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The bits that occur in each unit, and the bits that occur more than once; ``axes`` then have length 1."""
    cells = np.moveaxis(boards, axes, (0, 1))
    once = np.zeros(cells.shape[2:], boards.dtype)
    twice, both = np.zeros_like(once), np.empty_like(once)
    for line in cells:
        for cell in line:
            np.bitwise_and(once, cell, out=both)
            twice |= both
            once |= cell
    return np.expand_dims(once, axes), np.expand_dims(twice, axes)


def propagate(cells: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove the digits of solved cells from their units, then fix digits with one place left in a unit: one pass.

    Returns the new candidates ``[size², n]``, and ``[n]`` whether the board has become impossible.
    """
    boards = as_units(cells, size)
    solved = np.where(boards & (boards - 1), 0, boards)
    taken = np.zeros_like(boards)
    impossible = np.zeros(boards.shape[-1], bool)
    for axes in UNITS.values():
        once, twice = once_twice(solved, axes)
        taken |= once
        impossible |= twice.any(_CELLS)
    boards = boards & (~taken | solved)
    impossible |= ~boards.all(_CELLS)
    single = np.zeros_like(boards)
    for axes in UNITS.values():
        once, twice = once_twice(boards, axes)
        impossible |= (once != (1 << size) - 1).any(_CELLS)
        single |= once & ~twice
    single &= boards
    impossible |= (single & (single - 1)).any(_CELLS)  # one cell would be the only place of two digits
    np.copyto(boards, single, where=single != 0)
    return boards.reshape(cells.shape), impossible

"""Many boards at once: each cell is a set of digits, kept as the bits of an integer."""

import numpy as np

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by size."""

BLANK = 1
"""The token of a blank cell; digit d is token d + 1."""

# A board has axes [bands, rows in a band, stacks, columns in a stack, ...]. These are the axes inside a unit.
UNITS = {"row": (2, 3), "column": (0, 1), "box": (1, 3)}

# The digit of each token as a bit; a blank or a pad has no bit.
MASKS = np.concatenate([[0, 0], 1 << np.arange(9)]).astype(np.uint16)
# The number of digits in each set.
COUNTS = np.array([bin(mask).count("1") for mask in range(1 << 9)], np.uint8)


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

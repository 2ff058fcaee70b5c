"""ARC-AGI: tasks, their augmentations, their data folder, and one grid as a puzzle.

A grid is ``[rows, columns]`` uint8 of colours 0 to 9, each side 1 to 30. As tokens it is a board of 30 x 30, or of a
smaller side, row by row: 0 pads, 1 marks the end (in the row below and the column right of the grid, if the board has
them), and 2 to 11 are the colours.
"""

from hrm.data.arc.augmentation import augment, augmentations, augmented_name, original
from hrm.data.arc.dataset import build, tests_trained_on
from hrm.data.arc.grids import SIDE, VOCAB_SIZE, boards_of, crop, encode, side_of, sizes
from hrm.data.arc.puzzle import PALETTE, Arc
from hrm.data.arc.sources import TaskReader
from hrm.data.arc.tasks import ArcTask, read_grid, read_task

__all__ = [
    "PALETTE",
    "SIDE",
    "VOCAB_SIZE",
    "Arc",
    "ArcTask",
    "TaskReader",
    "augment",
    "augmentations",
    "augmented_name",
    "boards_of",
    "build",
    "crop",
    "encode",
    "original",
    "read_grid",
    "read_task",
    "side_of",
    "sizes",
    "tests_trained_on",
]

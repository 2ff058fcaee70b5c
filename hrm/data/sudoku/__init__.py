"""Sudoku of sizes 4 (boxes of 2 x 2), 6 (2 x 3), 8 (2 x 4), 9 (3 x 3), 10 (2 x 5), 12 (3 x 4) and 16 (4 x 4).

Tokens: 0 pad, 1 blank, 2 and up the digits, as in HRM (https://arxiv.org/abs/2506.21734) and its data set
sudoku-extreme.
"""

from hrm.data.sudoku.augmentation import augment
from hrm.data.sudoku.board import BOXES
from hrm.data.sudoku.dataset import build_set
from hrm.data.sudoku.generator import Difficulty, generate
from hrm.data.sudoku.puzzle import Sudoku
from hrm.data.sudoku.solver import Solutions, solve

__all__ = ["BOXES", "Difficulty", "Solutions", "Sudoku", "augment", "build_set", "generate", "solve"]

"""Changes of a puzzle that change its solution in the same way: digits renamed, lines swapped, the board turned."""

from typing import NamedTuple

import numpy as np

from hrm.data.dihedral import dihedral
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.data.task import PuzzleTask


class Symmetry(NamedTuple):
    """A change of a puzzle that changes its solution in the same way.

    Attributes:
        cells: ``[seq_len]`` int: the position from which each token is taken.
        tokens: ``[vocab_size]`` uint8: the token that replaces each token.
    """

    cells: np.ndarray
    tokens: np.ndarray

    def apply(self, sequence: np.ndarray) -> np.ndarray:
        """``[seq_len]`` tokens of a puzzle -> its variant."""
        return self.tokens[sequence[self.cells]]

    def undo(self, sequence: np.ndarray) -> np.ndarray:
        """``[seq_len]`` tokens of the variant's answer -> the puzzle's answer."""
        answer = np.empty(len(sequence), np.uint8)
        answer[self.cells] = np.argsort(self.tokens)[sequence]
        return answer


def has_symmetries(task: PuzzleTask | None) -> bool:
    """Whether :func:`symmetry` changes puzzles of ``task``."""
    return isinstance(task, Sudoku | Maze)


def symmetry(task: PuzzleTask, number: int, rng: np.random.Generator) -> Symmetry:
    """Symmetry ``number`` of a board of ``task``: 0 is no change.

    Those of a Sudoku are drawn from ``rng``: digits, bands, rows in bands, stacks and columns in stacks are permuted,
    and half of the boards with square boxes are transposed. Those of a maze are the eight of the square, in turn. Other
    tasks have none.
    """
    cells, tokens = np.arange(task.seq_len), np.arange(task.vocab_size, dtype=np.uint8)
    if number and isinstance(task, Sudoku):
        height, width = task.box
        board = cells.reshape(task.size, task.size)
        board = board[_shuffled_lines(task.size, height, rng)][:, _shuffled_lines(task.size, width, rng)]
        cells = (board.T if height == width and rng.random() < 0.5 else board).ravel()
        tokens[2:] = rng.permutation(tokens[2:])
    elif isinstance(task, Maze):
        cells = dihedral(cells.reshape(task.size, task.size), number % 8).ravel()
    return Symmetry(cells, tokens)


def _shuffled_lines(size: int, within: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of the blocks of ``within`` lines, and of the lines in each."""
    blocks = rng.permutation(size // within)
    return np.concatenate([block * within + rng.permutation(within) for block in blocks])

"""Changes of a puzzle that change its solution in the same way: digits renamed, lines swapped, the board turned."""

from typing import NamedTuple

import numpy as np

from hrm.data.dihedral import dihedral
from hrm.data.maze import Maze
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
    return task is not None and task.symmetries(1, np.random.default_rng(0)) is not None


def symmetry(task: PuzzleTask, number: int, rng: np.random.Generator) -> Symmetry:
    """Symmetry ``number`` of a board of ``task``: 0 is no change, others are drawn from ``rng``.

    Those of a maze are the eight of the square, in turn, so that none occurs twice among eight. A task without
    symmetries is not changed.
    """
    cells, tokens = np.arange(task.seq_len), np.arange(task.vocab_size, dtype=np.uint8)
    if isinstance(task, Maze):
        cells = dihedral(cells.reshape(task.size, task.size), number % 8).ravel()
    elif number and (drawn := task.symmetries(1, rng)) is not None:
        cells, tokens = drawn.cells[0], drawn.tokens[0]
    return Symmetry(cells, tokens)

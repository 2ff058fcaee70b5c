"""Symmetries of puzzles: changes that change the solution in the same way, one for each of many puzzles."""

from typing import NamedTuple

import numpy as np


class Symmetries(NamedTuple):
    """n symmetries of puzzles of one task.

    Attributes:
        cells: ``[n, seq_len]`` integers: the position from which each token is taken.
        tokens: ``[n, vocab_size]`` integers: the token that replaces each token.
    """

    cells: np.ndarray
    tokens: np.ndarray

    def rows(self, which: slice) -> "Symmetries":
        """Those of some of the puzzles."""
        return Symmetries(self.cells[which], self.tokens[which])

    def apply(self, sequences: np.ndarray) -> np.ndarray:
        """``[n, seq_len]`` tokens -> new ones, in the dtype of :attr:`tokens`."""
        rows = np.arange(len(sequences))[:, None]
        return self.tokens[rows, sequences[rows, self.cells]]

    def apply_to_labels(self, labels: np.ndarray) -> np.ndarray:
        """:meth:`apply` for ``[n, seq_len]`` signed labels: those below 0, which are not tokens, only move."""
        rows = np.arange(len(labels))[:, None]
        moved = labels[rows, self.cells]
        return np.where(moved < 0, moved, self.tokens[rows, np.maximum(moved, 0)]).astype(labels.dtype)

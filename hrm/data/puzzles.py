"""Many puzzles of one task with their answers."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_HASHED_AT_ONCE = 4096  # rows, so that their products stay in the cache


@dataclass(frozen=True, repr=False)
class Puzzles:
    """n puzzles with their answers.

    Attributes:
        inputs, labels: ``[n, seq_len]`` uint8 tokens of question and answer.
        ratings: ``[n]`` int64 difficulty.
        lines: ``[n]`` int64 lines of the file they were read from, or 0.
    """

    inputs: np.ndarray
    labels: np.ndarray
    ratings: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        ratings = f", ratings {self.ratings.min()} to {self.ratings.max()}" if len(self) else ""
        return f"Puzzles({len(self):,} of {self.inputs.shape[1]} cells{ratings})"

    @classmethod
    def concatenate(cls, parts: list["Puzzles"], seq_len: int) -> "Puzzles":
        """The puzzles of all ``parts``, in order. ``seq_len`` is the shape if there are no parts."""
        cells, numbers = np.zeros((0, seq_len), np.uint8), np.zeros(0, np.int64)
        columns = zip(*((part.inputs, part.labels, part.ratings, part.lines) for part in parts), strict=True)
        joined = [np.concatenate(column) for column in columns]
        return cls(*joined) if joined else cls(cells, cells, numbers, numbers)

    def take(self, which: np.ndarray) -> "Puzzles":
        """The puzzles selected by an index or mask array."""
        return Puzzles(self.inputs[which], self.labels[which], self.ratings[which], self.lines[which])

    def sample(self, count: int | None, rng: np.random.Generator) -> "Puzzles":
        """``count`` random puzzles in their order, or all if there are not more."""
        if count is None or count >= len(self):
            return self
        return self.take(np.sort(rng.choice(len(self), count, replace=False)))


def row_keys(tokens: np.ndarray) -> np.ndarray:
    """Hash ``[n, seq_len]`` rows of integers of 0 or more to ``[n]`` uint64 keys.

    Different rows collide with probability 2^-64. Keys do not depend on the dtype.
    """
    weights, keys = _weights(tokens.shape[1]), np.empty(len(tokens), np.uint64)
    for start in range(0, len(tokens), _HASHED_AT_ONCE):
        part = slice(start, start + _HASHED_AT_ONCE)
        keys[part] = (tokens[part].astype(np.uint64) * weights).sum(1, dtype=np.uint64)
    return keys


@lru_cache(maxsize=8)
def _weights(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**64, length, np.uint64)


class KnownPuzzles:
    """A set of puzzles, to recognise equal ones.

    Args:
        inputs: ``[n, seq_len]`` tokens.
    """

    def __init__(self, inputs: np.ndarray):
        self._keys = np.unique(row_keys(inputs))

    def contains(self, inputs: np.ndarray) -> np.ndarray:
        """``[m, seq_len]`` tokens -> ``[m]`` bool."""
        if not len(self._keys):
            return np.zeros(len(inputs), bool)
        keys = row_keys(inputs)
        at = np.searchsorted(self._keys, keys)
        return self._keys[np.minimum(at, len(self._keys) - 1)] == keys

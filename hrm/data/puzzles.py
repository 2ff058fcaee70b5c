"""Many puzzles of one task with their answers."""

from dataclasses import dataclass

import numpy as np


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
    """Hash ``[n, seq_len]`` uint8 rows to ``[n]`` uint64 keys; different rows collide with probability 2^-64."""
    weights = np.random.default_rng(0).integers(0, 2**64, tokens.shape[1], np.uint64)
    keys = np.zeros(len(tokens), np.uint64)
    for weight, column in zip(weights, tokens.T, strict=True):
        keys += weight * column
    return keys

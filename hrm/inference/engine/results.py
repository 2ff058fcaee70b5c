"""The answer to a puzzle: after each segment, and at halting."""

import math
from dataclasses import dataclass

import numpy as np

from hrm.errors import InputError


@dataclass(frozen=True, repr=False)
class Frame:
    """The answer after one segment.

    Attributes:
        step: number of segments so far, from 1.
        tokens: ``[seq_len]`` uint8 (int32 for larger vocabularies).
        q_halt, q_continue: logits; q_continue is 0 for models without that head.
    """

    step: int
    tokens: np.ndarray
    q_halt: float
    q_continue: float

    @property
    def confidence(self) -> float:
        """The model's estimate of the probability that this answer is right."""
        return sigmoid(self.q_halt)

    @property
    def continue_value(self) -> float:
        """The model's estimate of the value of another segment, on the same scale."""
        return sigmoid(self.q_continue)

    def __repr__(self) -> str:
        return f"Frame(step={self.step}, confidence={self.confidence:.1%}, tokens={_shortened(self.tokens)})"


@dataclass(frozen=True, repr=False)
class Result:
    """The answer to a puzzle, or the reason why there is none.

    Attributes:
        index: the puzzle's number, from 0: in the argument of ``solve``, or among all submitted puzzles.
        tokens: ``[seq_len]``, the answer at halting, with the dtype of a frame's; empty after an error.
        steps: number of segments; 0 after an error.
        q_halt, q_continue: logits at halting; NaN after an error.
        trace: the answer after each segment, if it was requested; else empty.
        error: why the puzzle was refused; None if it was solved.
    """

    index: int
    tokens: np.ndarray
    steps: int
    q_halt: float
    q_continue: float
    trace: tuple[Frame, ...] = ()
    error: InputError | None = None

    @classmethod
    def refused(cls, index: int, error: InputError) -> "Result":
        """The result of a puzzle that the engine does not run."""
        return cls(index, np.zeros(0, np.uint8), 0, math.nan, math.nan, error=error)

    @property
    def confidence(self) -> float:
        """The model's estimate of the probability that the answer is right."""
        return sigmoid(self.q_halt)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Result(index={self.index}, error={self.error!r})"
        return (
            f"Result(index={self.index}, steps={self.steps}, confidence={self.confidence:.1%}, "
            f"tokens={_shortened(self.tokens)})"
        )


def sigmoid(logit: float) -> float:
    """``1 / (1 + exp(-logit))`` without overflow."""
    return 0.5 * (1 + math.tanh(0.5 * logit))


def _shortened(tokens: np.ndarray) -> str:
    """The first and last tokens of a long sequence on one line."""
    return np.array2string(tokens, threshold=16, edgeitems=6, max_line_width=10**6)

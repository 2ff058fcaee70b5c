"""The answer to a puzzle: after each segment, and at halting."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hrm.config import ModelConfig
from hrm.errors import InputError


class ImpossiblePuzzle(InputError):
    """The puzzle has no solution.

    Attributes:
        reason: why, in a few words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the puzzle has no solution: {reason}")
        self.reason = reason


def answer_dtype(config: ModelConfig) -> type[np.integer]:
    """The dtype of answers: uint8, or int32 for larger vocabularies."""
    return np.uint8 if config.vocab_size <= 256 else np.int32


@dataclass(frozen=True, repr=False)
class Frame:
    """The answer after one segment.

    Attributes:
        step: number of segments so far, from 1.
        tokens: ``[seq_len]`` uint8 (int32 for larger vocabularies).
        q_halt, q_continue: logits; q_continue is 0 for models without that head.
        residual: how much the segment changed the states (:func:`hrm.inference.engine.segment.residual`), if the rule
            of halting or the choice among trajectories looks at it; else NaN.
    """

    step: int
    tokens: np.ndarray
    q_halt: float
    q_continue: float
    residual: float = math.nan

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
class Trajectory:
    """One of several attempts at a puzzle, at halting.

    Attributes:
        number: from 0; trajectory 0 is the plain one.
        tokens: ``[seq_len]``, its answer, to the puzzle as it was given.
        steps: number of segments.
        q_halt, q_continue: as in :class:`Frame`.
        residual: how much the last segments (at most three) changed the states on average.
        verified, reason, trace: as in :class:`Result`.
    """

    number: int
    tokens: np.ndarray
    steps: int
    q_halt: float
    q_continue: float
    residual: float
    verified: bool | None
    reason: str | None
    trace: tuple[Frame, ...]

    @classmethod
    def of(
        cls,
        number: int,
        last: Frame,
        residual: float,
        trace: tuple[Frame, ...],
        verified: bool | None,
        reason: str | None,
    ) -> "Trajectory":
        """The trajectory whose last segment gave ``last``."""
        return cls(number, last.tokens, last.step, last.q_halt, last.q_continue, residual, verified, reason, trace)

    @property
    def confidence(self) -> float:
        """The model's estimate of the probability that the answer is right."""
        return sigmoid(self.q_halt)

    def __repr__(self) -> str:
        verdict = "" if self.verified is None else f", verified={self.verified}"
        return (
            f"Trajectory(number={self.number}, steps={self.steps}, confidence={self.confidence:.1%}, "
            f"residual={self.residual:.3g}{verdict}, tokens={_shortened(self.tokens)})"
        )


@dataclass(frozen=True, repr=False)
class Result:
    """The answer to a puzzle, or the reason why there is none.

    Attributes:
        index: the puzzle's number, from 0: in the argument of ``solve``, or among all submitted puzzles.
        tokens: ``[seq_len]``, the answer at halting, with the dtype of a frame's; empty after an error, or if the
            engine abstains.
        steps: number of segments; 0 after an error, and for a puzzle that is its own answer.
        q_halt, q_continue: logits at halting; NaN after an error. A puzzle that is its own answer has q_halt inf.
        trace: the answer after each segment, if it was requested; else empty.
        error: why the puzzle was refused, or has no solution; None if it was solved.
        verified: whether the answer is right, by the check of the engine's task; None without a task that can tell.
        reason: why the check refuses the answer; None if it accepts it, or the engine has no task.
        trajectories: of an engine with several per puzzle, those that halted; the answer is that of one of them. Others
            ended when an answer was verified.
        chosen: for each rule of selection, and for the engine's order of rules, the number of the trajectory that it
            chooses among them.
    """

    index: int
    tokens: np.ndarray
    steps: int
    q_halt: float
    q_continue: float
    trace: tuple[Frame, ...] = ()
    error: InputError | None = None
    verified: bool | None = None
    reason: str | None = None
    trajectories: tuple[Trajectory, ...] = ()
    chosen: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def solved(cls, index: int, tokens: np.ndarray) -> "Result":
        """The result of a puzzle that is its own answer."""
        return cls(index, tokens, 0, math.inf, 0.0, verified=True)

    @classmethod
    def refused(cls, index: int, error: InputError) -> "Result":
        """The result of a puzzle that does not fit the model, or has no solution."""
        verdict = (False, error.reason) if isinstance(error, ImpossiblePuzzle) else (None, None)
        return cls(index, np.zeros(0, np.uint8), 0, math.nan, math.nan, (), error, *verdict)

    @property
    def confidence(self) -> float:
        """The model's estimate of the probability that the answer is right."""
        return sigmoid(self.q_halt)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Result(index={self.index}, error={self.error!r})"
        verdict = "" if self.verified is None else f", verified={self.verified}"
        return (
            f"Result(index={self.index}, steps={self.steps}, confidence={self.confidence:.1%}{verdict}, "
            f"tokens={_shortened(self.tokens)})"
        )


def sigmoid(logit: float) -> float:
    """``1 / (1 + exp(-logit))`` without overflow."""
    return 0.5 * (1 + math.tanh(0.5 * logit))


def _shortened(tokens: np.ndarray) -> str:
    """The first and last tokens of a long sequence on one line."""
    return np.array2string(tokens, threshold=16, edgeitems=6, max_line_width=10**6)

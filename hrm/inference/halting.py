"""When a puzzle is done thinking: the rules the engine asks after every segment."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hrm.errors import InputError


@dataclass(frozen=True)
class Moment:
    """What the slots of an engine stand at after a segment, one row each; rows without a puzzle hold anything.

    Attributes:
        steps: ``[slots]`` int, segments so far, from 1.
        tokens: ``[slots, seq_len]`` integers, the most likely answer.
        unchanged: ``[slots]`` int, the last so many segments left the answer as it was.
        q_halt, q_continue: ``[slots]`` float32 logits; q_continue is 0 for models without that head.
    """

    steps: np.ndarray
    tokens: np.ndarray
    unchanged: np.ndarray
    q_halt: np.ndarray
    q_continue: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """``[slots]`` q_halt - q_continue."""
        return self.q_halt - self.q_continue


Halting = Callable[[Moment], np.ndarray]
"""``[slots]`` bool: the rows that are done. It must judge each row by that row alone."""


def halts_by_q(moment: Moment) -> np.ndarray:
    """Halt where halting promises more than another segment."""
    from hrm.act import prefers_halting  # here: rules are read and checked before torch is imported

    return prefers_halting(moment.q_halt, moment.q_continue)


def halts_at_the_end(moment: Moment) -> np.ndarray:
    """Never before the last segment: the published evaluation."""
    return np.zeros(len(moment.steps), bool)


@dataclass(frozen=True)
class Stable:
    """The answer has been the same for ``segments`` segments after the one that gave it."""

    segments: int

    def __call__(self, moment: Moment) -> np.ndarray:
        return moment.unchanged >= self.segments


@dataclass(frozen=True)
class Margin:
    """q_halt exceeds q_continue by more than ``threshold``; :func:`hrm.inference.calibrate.calibrate` finds one."""

    threshold: float

    def __call__(self, moment: Moment) -> np.ndarray:
        return moment.margin > self.threshold


def ignores_answers(rule: Halting) -> bool:
    """``rule`` is one of ours that looks at no answer: its :class:`Moment` may hold any tokens and counts."""
    return rule in (halts_by_q, halts_at_the_end) or isinstance(rule, Margin)


def parse_halting(halt: str | Halting) -> Halting:
    """The rule that ``halt`` names: ``q``, ``fixed``, ``stable:K`` or ``margin:X``; a callable is one already.

    Raises:
        InputError: there is no such rule.
    """
    if callable(halt):
        return halt
    name, colon, value = str(halt).partition(":")
    if halt == "q":
        return halts_by_q
    if halt == "fixed":
        return halts_at_the_end
    try:
        if name == "stable" and colon and int(value) >= 1:
            return Stable(int(value))
        if name == "margin" and colon and not np.isnan(float(value)):
            return Margin(float(value))
    except ValueError:
        pass
    raise InputError(
        f"halt is {halt!r}, expected 'q', 'fixed', 'stable:K' (the answer unchanged for K segments, K at least 1), "
        "'margin:X' (q_halt above q_continue by more than X) or, on the command line, 'calibrated'"
    )

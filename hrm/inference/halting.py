"""Rules of halting: whether a puzzle ends after a segment."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hrm.errors import InputError
from hrm.files import read_json
from hrm.locate import locate

CALIBRATION_FILE = "halting.json"
"""The file beside a checkpoint in which ``hrm calibrate`` stores a threshold."""


@dataclass(frozen=True)
class Moment:
    """The slots of an engine after a segment, one row each; the values of rows without a puzzle are undefined.

    Attributes:
        steps: ``[slots]`` int, segments so far, from 1.
        tokens: ``[slots, seq_len]`` integers, the most likely answer.
        unchanged: ``[slots]`` int, number of last segments that did not change the answer.
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
"""A rule of halting: ``[slots]`` bool, the rows that halt. It must not judge a row by other rows."""


def halts_by_q(moment: Moment) -> np.ndarray:
    """Halt where halting promises more than another segment."""
    from hrm.act import prefers_halting  # here: rules are read and checked before torch is imported

    return prefers_halting(moment.q_halt, moment.q_continue)


def halts_at_the_end(moment: Moment) -> np.ndarray:
    """Halt after the last segment only: the published evaluation."""
    return np.zeros(len(moment.steps), bool)


@dataclass(frozen=True)
class Stable:
    """Halt where the answer has not changed for ``segments`` segments."""

    segments: int

    def __call__(self, moment: Moment) -> np.ndarray:
        return moment.unchanged >= self.segments


@dataclass(frozen=True)
class Margin:
    """Halt where q_halt exceeds q_continue by more than ``threshold``, as :mod:`hrm.inference.calibrate` finds one."""

    threshold: float

    def __call__(self, moment: Moment) -> np.ndarray:
        return moment.margin > self.threshold


def ignores_answers(rule: Halting) -> bool:
    """Whether ``rule`` is known not to look at tokens: its :class:`Moment` may have any tokens and counts."""
    return rule in (halts_by_q, halts_at_the_end) or isinstance(rule, Margin)


def parse_halting(halt: str | Halting, checkpoint: Path | str | None = None) -> Halting:
    """The rule that ``halt`` names; torch is not imported.

    Args:
        halt: ``"q"``, ``"fixed"``, ``"stable:K"``, ``"margin:X"`` or ``"calibrated"``; a callable is returned as it is.
        checkpoint: the model for ``"calibrated"``, as :func:`hrm.load` takes it; None for a model without a file.

    Raises:
        InputError: the rule is unknown, or no threshold is stored beside ``checkpoint``.
    """
    if callable(halt):
        return halt
    name, colon, value = str(halt).partition(":")
    if halt == "q":
        return halts_by_q
    if halt == "fixed":
        return halts_at_the_end
    if halt == "calibrated":
        if checkpoint is None:
            raise InputError("halt is 'calibrated', and the model is an object; give its name, or halt='margin:X'")
        return _calibrated(checkpoint)
    try:
        if name == "stable" and colon and int(value) >= 1:
            return Stable(int(value))
        if name == "margin" and colon and not math.isnan(float(value)):
            return Margin(float(value))
    except ValueError:
        pass
    raise InputError(
        f"halt is {halt!r}, expected 'q', 'fixed', 'stable:K' (the answer unchanged for K segments, K at least 1), "
        "'margin:X' (q_halt above q_continue by more than X) or, for a model given by name, 'calibrated'"
    )


def calibration_folder(checkpoint: Path | str) -> Path:
    """The folder of :data:`CALIBRATION_FILE`: beside the weights of ``checkpoint``."""
    path = locate(checkpoint)
    return path if path.is_dir() or not path.exists() else path.parent


def _calibrated(checkpoint: Path | str) -> Margin:
    """The rule that ``hrm calibrate`` stored beside ``checkpoint``.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = calibration_folder(checkpoint) / CALIBRATION_FILE
    if not file.is_file():
        raise InputError(
            f"{checkpoint} has not been calibrated ({file} is missing); run hrm calibrate {checkpoint} --data DIR, "
            "or choose another rule of halting"
        )
    values = read_json(file)
    threshold = values.get("threshold") if isinstance(values, dict) else None
    if not isinstance(threshold, int | float) or math.isnan(threshold):
        raise InputError(f"{file} holds no threshold; run hrm calibrate {checkpoint} again")
    return Margin(float(threshold))

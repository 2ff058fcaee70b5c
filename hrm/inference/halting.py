"""Rules of halting: whether a puzzle ends after a segment."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
        residuals: ``[slots, window]`` float32, how much each of the last segments changed the states
            (:func:`hrm.inference.engine.segment.residual`), the newest last; inf before the first segment. They are
            measured for rules with an attribute ``residuals``, the window.
        verified: ``[slots]`` bool, whether the task's check accepts the answer; all False without a rule that asks.
    """

    steps: np.ndarray
    tokens: np.ndarray
    unchanged: np.ndarray
    q_halt: np.ndarray
    q_continue: np.ndarray
    residuals: np.ndarray
    verified: np.ndarray

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


def halts_when_verified(moment: Moment) -> np.ndarray:
    """Halt where the task's check accepts the answer."""
    return moment.verified


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


@dataclass(frozen=True)
class FixedPoint:
    """Halt where each of the last ``patience`` segments changed the states by less than ``threshold``.

    Source: FPRM (arXiv 2606.18206).
    """

    threshold: float
    patience: int = 2

    @property
    def residuals(self) -> int:
        """The number of last residuals that the rule looks at."""
        return self.patience

    def __call__(self, moment: Moment) -> np.ndarray:
        return np.all(moment.residuals[:, -self.patience :] < self.threshold, 1)


@dataclass(frozen=True)
class AnyOf:
    """Halt where one of the rules does."""

    rules: tuple[Halting, ...]

    def __call__(self, moment: Moment) -> np.ndarray:
        return np.any([rule(moment) for rule in self.rules], 0)


@dataclass(frozen=True)
class AllOf:
    """Halt where all rules do."""

    rules: tuple[Halting, ...]

    def __call__(self, moment: Moment) -> np.ndarray:
        return np.all([rule(moment) for rule in self.rules], 0)


class Needs(NamedTuple):
    """What a rule looks at; what no rule needs is not computed.

    Attributes:
        answers: ``tokens`` and ``unchanged``.
        residuals: number of last residuals; 0 for none.
        check: ``verified``.
    """

    answers: bool
    residuals: int
    check: bool


def needs(rule: Halting) -> Needs:
    """What ``rule`` looks at. An unknown one gets answers, and residuals if it has an attribute ``residuals``."""
    if rule in (halts_by_q, halts_at_the_end) or isinstance(rule, Margin):
        return Needs(False, 0, False)
    if rule is halts_when_verified:
        return Needs(True, 0, True)
    if isinstance(rule, FixedPoint):
        return Needs(False, rule.residuals, False)
    if isinstance(rule, AnyOf | AllOf):
        answers, residuals, checks = zip(*map(needs, rule.rules))
        return Needs(any(answers), max(residuals), any(checks))
    return Needs(True, getattr(rule, "residuals", 0), False)


def parse_halting(halt: str | Halting, source: Path | str | None = None) -> Halting:
    """The rule that ``halt`` names; torch is not imported.

    Args:
        halt: ``"q"``, ``"fixed"``, ``"check"``, ``"stable:K"``, ``"margin:X"``, ``"residual:EPS"``,
            ``"residual:EPS:PATIENCE"``, ``"calibrated"`` or ``"auto"`` (calibrated if the model is, else ``"q"``);
            several with ``|`` (one is enough) or ``&`` (all must hold; it binds more closely), such as
            ``"q|residual:0.01"``; a callable is returned as it is.
        source: where the model comes from, as :func:`hrm.load` takes it, or its ``folder``; None for a model that was
            not loaded.

    Raises:
        InputError: the rule is unknown, or ``"calibrated"`` and no threshold is stored beside the model.
    """
    if callable(halt):
        return halt
    for sign, combination in (("|", AnyOf), ("&", AllOf)):
        if sign in str(halt):
            return combination(tuple(parse_halting(part.strip(), source) for part in str(halt).split(sign)))
    if halt in _NAMED:
        return _NAMED[halt]
    name, colon, value = str(halt).partition(":")
    if halt == "auto":
        return _calibrated(source) if source is not None and is_calibrated(source) else halts_by_q
    if halt == "calibrated":
        if source is None:
            raise InputError("halt is 'calibrated', and the model was not loaded from a folder; give halt='margin:X'")
        return _calibrated(source)
    try:
        if name == "stable" and colon and int(value) >= 1:
            return Stable(int(value))
        if name == "margin" and colon and not math.isnan(float(value)):
            return Margin(float(value))
        threshold, _, patience = value.partition(":")
        if name == "residual" and float(threshold) > 0 and int(patience or 2) >= 1:
            return FixedPoint(float(threshold), int(patience or 2))
    except ValueError:
        pass
    raise InputError(
        f"halt is {halt!r}, expected 'q', 'fixed', 'stable:K' (the answer unchanged for K segments, K at least 1), "
        "'margin:X' (q_halt above q_continue by more than X), 'residual:EPS' or 'residual:EPS:PATIENCE' (the states "
        "change by less than EPS), 'check' (the task accepts the answer), several of them with | or &, "
        "'calibrated' (by the threshold that hrm calibrate stored) or 'auto' (calibrated if the model is, else q)"
    )


def check_halting(halt: str | Halting, source: Path | str | None) -> None:
    """Refuse a rule as :func:`parse_halting` does, but if the model has to be downloaded first, refuse nothing."""
    if source is None or locate(source).exists():
        parse_halting(halt, source)


_NAMED: dict[str, Halting] = {"q": halts_by_q, "fixed": halts_at_the_end, "check": halts_when_verified}


def calibration_folder(checkpoint: Path | str) -> Path:
    """The folder of :data:`CALIBRATION_FILE`: beside the weights of ``checkpoint``."""
    path = locate(checkpoint)
    return path if path.is_dir() or not path.exists() else path.parent


def is_calibrated(source: Path | str) -> bool:
    """Whether ``hrm calibrate`` has stored a threshold beside the model."""
    return (calibration_folder(source) / CALIBRATION_FILE).is_file()


def _calibrated(checkpoint: Path | str) -> Halting:
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
    rule = values.get("rule", "margin")  # earlier files have no other
    return parse_halting(f"{rule}:{float(threshold)!r}")

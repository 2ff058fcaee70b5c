"""Which of several answers to a puzzle is taken: by the task's check, by vote, by q_halt, or by the residual.

An order of rules decides: the first one, among equals the second one, and so on; then the earlier answer.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hrm.errors import InputError

if TYPE_CHECKING:  # the command line imports this module for its help, which must not wait for NumPy
    import numpy as np

    from hrm.data.task import PuzzleTask

WINDOW = 3
"""Segments over which the residual of an answer is a mean, as in EqR (arXiv 2605.21488)."""


def mean_residual(residuals: "Sequence[float] | np.ndarray") -> float:
    """The mean of the last residuals, at most :data:`WINDOW`; NaN if there is none."""
    last = residuals[-WINDOW:]
    return math.fsum(last) / len(last) if len(last) else math.nan


class Candidate(NamedTuple):
    """One answer to a puzzle.

    Attributes:
        tokens: ``[seq_len]``.
        q_halt: the logit at halting.
        residual: how much the states still changed, a mean over the last segments; NaN if it was not measured.
        verified: whether the task's check accepts the answer; None if the task cannot tell.
    """

    tokens: "np.ndarray"
    q_halt: float
    residual: float
    verified: bool | None


def _by_check(candidates: Sequence[Candidate]) -> list[float]:
    return [float(one.verified is True) for one in candidates]


def _by_vote(candidates: Sequence[Candidate]) -> list[float]:
    answers = [one.tokens.tobytes() for one in candidates]
    votes = Counter(answers)
    return [float(votes[answer]) for answer in answers]


def _by_q(candidates: Sequence[Candidate]) -> list[float]:
    return [-math.inf if math.isnan(one.q_halt) else one.q_halt for one in candidates]


def _by_residual(candidates: Sequence[Candidate]) -> list[float]:
    return [-math.inf if math.isnan(one.residual) else -one.residual for one in candidates]


RULES: dict[str, Callable[[Sequence[Candidate]], list[float]]] = {
    "check": _by_check,
    "vote": _by_vote,
    "q": _by_q,
    "residual": _by_residual,
}
"""The value of each candidate by each rule; the highest is taken.

``check``: the task's check accepts the answer. ``vote``: the number of equal answers. ``q``: q_halt, as in PTRM (arXiv
2605.19943). ``residual``: the smallest residual, as in EqR (arXiv 2605.21488).
"""


def rules_for(task: "PuzzleTask | None") -> list[str]:
    """The single rules; without ``check`` if ``task`` cannot verify answers."""
    return [rule for rule in RULES if rule != "check" or task is not None and task.verifies]


DEFAULT_ORDER = "check,vote,q"


def parse_order(select: str) -> tuple[str, ...]:
    """The rules in ``select``, such as ``"check,vote,q"``.

    Raises:
        InputError: there is none, one is unknown, or one occurs twice.
    """
    rules = tuple(part.strip() for part in str(select).split(","))
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise InputError(
            f"select is {select!r} with the unknown rule {unknown[0]!r}; expected {', '.join(RULES)}, or several of "
            f"them in order, such as {DEFAULT_ORDER!r}"
        )
    if len(set(rules)) < len(rules):
        raise InputError(f"select is {select!r}, and a rule in it occurs twice; give each once")
    return rules


def choose(order: Sequence[str], candidates: Sequence[Candidate]) -> int:
    """The number of the best candidate, from 0; there must be one."""
    values = list(zip(*(RULES[rule](candidates) for rule in order)))
    return max(range(len(candidates)), key=values.__getitem__)


def choices(order: Sequence[str], candidates: Sequence[Candidate]) -> dict[str, int]:
    """The number of the best candidate by each single rule, and by ``order`` (joined by commas)."""
    every = {rule: choose([rule], candidates) for rule in RULES}
    return every | {",".join(order): choose(order, candidates)}

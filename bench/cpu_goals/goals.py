"""Goals for CPUs, and how measurements are judged by them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.report.text import seconds
from bench.turns import LEAST

Rows = Mapping[str, Mapping[str, Any]]
"""Measurements of one case by candidate, as :func:`bench.measure.measure` returns them."""

MET, MISSED, BUSY, LATE, NOT_HERE, FAILED = (
    "met",
    "not met",
    "could not be judged: machine busy",
    "could not be judged: no time left",
    "does not apply",
    "failed",
)


@dataclass(frozen=True)
class Goal:
    """How fast one candidate should be.

    Attributes:
        what: the workload, in the table.
        ours: the candidate.
        others: what it is compared with; of several, the fastest counts.
        least: the other's time divided by ours, at least; the share of a peak, if the other is multiply-adds alone.
        most_seconds: the time of ours, at most; then there are no others.
        not_here: why this machine cannot be judged by it, or None.
    """

    what: str
    ours: str = "ours"
    others: tuple[str, ...] = ()
    least: float = 0.0
    most_seconds: float | None = None
    not_here: str | None = None

    @property
    def kind(self) -> str:
        """What its value is: "ratio", "share" (of a peak) or "seconds"."""
        if self.most_seconds is not None:
            return "seconds"
        return "share" if any("alone" in other for other in self.others) else "ratio"

    @property
    def expected(self) -> str:
        if self.most_seconds is not None:
            return f"<= {seconds(self.most_seconds)}"
        others = " and ".join(self.others)
        return f">= {self.least:.0%} of {others}" if self.kind == "share" else f">= {self.least:g} x {others}"


@dataclass(frozen=True)
class Verdict:
    """A judged goal.

    Attributes:
        status: one of the words above.
        value: median over the turns: a ratio, or seconds.
        quarters: first and third quartile of ``value``.
        turns, disturbed: number of turns that count, and of those that do not because threads waited for a core.
        against: the candidate of ``others`` that it was compared with.
        reason: why it does not apply or failed.
        kind: see :class:`Goal`.
        counted: of many workloads, how many reach the goal, and the lowest.
    """

    what: str
    expected: str
    status: str
    value: float | None = None
    quarters: tuple[float, float] | None = None
    turns: int = 0
    disturbed: int = 0
    against: str | None = None
    reason: str | None = None
    kind: str = "ratio"
    counted: str | None = None

    @property
    def measured(self) -> str:
        """The value and its quarters in words."""
        if self.value is None or self.quarters is None:
            return self.counted or ""
        show = {"seconds": seconds, "share": "{:.0%}".format, "ratio": "{:.2f}".format}[self.kind]
        unit = {"seconds": "", "share": f" of {self.against}", "ratio": f" x {self.against}"}[self.kind]
        low, high = map(show, self.quarters)
        return f"{show(self.value)}{unit} ({low}, {high})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"measured": self.measured}


def judge(goal: Goal, rows: Rows | None) -> Verdict:
    """Judge a goal by the undisturbed turns of its candidates.

    Args:
        rows: None if there was no time to measure; empty if the machine was busy.
    """
    if goal.not_here is not None:
        return Verdict(goal.what, goal.expected, NOT_HERE, reason=goal.not_here)
    if rows is None:
        return Verdict(goal.what, goal.expected, LATE)
    if not rows:
        return Verdict(goal.what, goal.expected, BUSY)
    wanted = (goal.ours, *goal.others)
    if wrong := [f"{name}: {rows[name]['status']}" for name in wanted if rows[name]["status"] != "ok"]:
        return Verdict(goal.what, goal.expected, FAILED, reason="; ".join(wrong))
    ours, disturbed = rows[goal.ours]["times"], rows[goal.ours]["disturbed"]
    if len(ours) < LEAST:
        return Verdict(goal.what, goal.expected, BUSY, turns=len(ours), disturbed=disturbed)
    against = min(goal.others, key=lambda name: statistics.median(rows[name]["times"]), default=None)
    values = ours if against is None else [other / one for other, one in zip(rows[against]["times"], ours)]
    low, value, high = statistics.quantiles(values, n=4, method="inclusive")
    is_met = value >= goal.least if goal.most_seconds is None else value <= goal.most_seconds
    status = MET if is_met else MISSED
    return Verdict(goal.what, goal.expected, status, value, (low, high), len(ours), disturbed, against, kind=goal.kind)


def worst_of(what: str, expected: str, verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for a goal of many workloads, such as "never below": its value is the smallest.

    It is met only if every workload was judged.
    """
    judged = [one for one in verdicts if one.value is not None]
    missed = [one for one in judged if one.status == MISSED]
    unjudged = [one for one in verdicts if one.value is None and one.status != NOT_HERE]
    if not judged and not unjudged:
        return Verdict(what, expected, NOT_HERE, reason="nothing of it can run here")
    failed = [one for one in unjudged if one.status == FAILED]
    status = FAILED if failed else MISSED if missed else unjudged[0].status if unjudged else MET
    counted = f"{len(judged) - len(missed)} of {len(judged) + len(unjudged)} reach it"
    if unjudged:
        counted += f", {len(unjudged)} not judged"
    worst = min(judged, key=lambda one: one.value or 0.0, default=None)
    disturbed = sum(one.disturbed for one in verdicts)
    if worst is None:
        return Verdict(what, expected, status, disturbed=disturbed, counted=counted)
    counted += f"; lowest: {worst.what}, {worst.measured}"
    return Verdict(what, expected, status, turns=worst.turns, disturbed=disturbed, counted=counted)

"""Measure the cases one after the other within a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.cpu_goals.cases import PARTS, Case
from bench.cpu_goals.goals import NOT_HERE, Rows, Verdict, judge, worst_of
from bench.cpu_goals.machine import Machine
from bench.measure import measure
from bench.turns import LEAST

PATIENCE = 3
"""How many times as many turns are tried as are needed, when other work disturbs them."""

MOST_TURNS = 15


@dataclass
class Result:
    """Verdicts in the order of the table, and what was measured.

    Attributes:
        details: the verdicts behind those that are shown as one line.
        samples: for each workload and dtype the candidates' rows.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    details: list[Verdict] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def disturbed(self) -> int:
        return sum(max(row.get("disturbed", 0) for row in one["rows"].values()) for one in self.samples)


def share(case: Case, later: Sequence[Case], left: float) -> float:
    """Seconds for a case: its share of what is ``left``; what earlier cases did not use is there for later ones."""
    return left * case.weight / (case.weight + sum(one.weight for one in later))


def run(
    parts: Sequence[str],
    machine: Machine,
    budget: float,
    show: Callable[[str], None] = lambda line: None,
    measured: Callable[[Case, float], Rows] | None = None,
) -> Result:
    """Measure and judge.

    Args:
        budget: seconds; no case starts later.
        show: gets a line when a case is done.
        measured: measures a case until a time of ``time.perf_counter``; default :func:`measure_case`.
    """
    start = time.perf_counter()
    cases = [case for part in PARTS if part in parts for case in PARTS[part](machine)]
    result, summaries = Result(), {}
    pending = [case for case in cases if case.is_measured]
    for case in cases:
        rows = None
        if case.is_measured:
            pending.remove(case)
            now = time.perf_counter()
            if (left := start + budget - now) > 0:
                rows = (measured or measure_case)(case, now + share(case, pending, left))
                result.samples.append(_sample(case, rows, time.perf_counter() - now))
        verdicts = [judge(goal, rows) for goal in case.goals]
        for one in verdicts:
            if rows is not None and one.status != NOT_HERE:
                show(f"  {one.what}: {one.measured or one.status}")
        if case.summary is None:
            result.verdicts += verdicts
        else:
            summaries.setdefault(case.summary, (case.goals[0].least, []))[1].extend(verdicts)
    for what, (least, verdicts) in summaries.items():
        result.verdicts.append(worst_of(what, f">= {least:g} x PyTorch", verdicts))
        result.details += verdicts
    result.seconds = time.perf_counter() - start
    return result


def measure_case(case: Case, until: float) -> Rows:
    """Check and time a case; at least :data:`bench.turns.LEAST` turns are tried, however late it is."""

    def rounds(turn: float) -> int:
        return max(LEAST, min(MOST_TURNS, int((until - time.perf_counter()) / max(turn, 1e-9))))

    return measure(case.workload, "cpu", case.dtype, case.candidates, rounds, PATIENCE, until)


def _sample(case: Case, rows: Rows, elapsed: float) -> dict[str, Any]:
    dtype = str(case.dtype).removeprefix("torch.")
    return {"part": case.part, "workload": case.workload.name, "dtype": dtype, "seconds": elapsed, "rows": dict(rows)}

"""Measure the cases one after the other within a time."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.cpu_goals.cases import PARTS, Case
from bench.cpu_goals.goals import NOT_HERE, Rows, Verdict, judge, worst_of
from bench.cpu_goals.machine import Machine
from bench.measure import failure_of, measure
from bench.turns import LEAST, seconds_waited

PATIENCE = 3
"""How many times as many turns are tried as are needed, when other work disturbs them."""

MOST_TURNS = 15

TRIES = 3
"""How often a case may find the machine busy before it starts."""


@dataclass(frozen=True)
class Tools:
    """What measures: tests replace it.

    Attributes:
        measure: measures a case until a time of ``time.perf_counter``.
        is_busy: whether other work takes the cores.
    """

    measure: Callable[[Case, float], Rows] = lambda case, until: measure_case(case, until)
    is_busy: Callable[[], bool] = lambda: is_busy()


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
        return sum(max((row.get("disturbed", 0) for row in one["rows"].values()), default=0) for one in self.samples)


def share(case: Case, later: Sequence[Case], left: float) -> float:
    """Seconds for a case: its share of what is ``left``; what earlier cases did not use is there for later ones."""
    return left * case.weight / (case.weight + sum(one.weight for one in later))


def run(
    parts: Sequence[str],
    machine: Machine,
    budget: float,
    show: Callable[[str], None] = lambda line: None,
    tools: Tools | None = None,
) -> Result:
    """Measure and judge.

    Args:
        budget: seconds; no case starts later.
        show: gets a line when a case is done.
    """
    start = time.perf_counter()
    cases = [case for part in PARTS if part in parts for case in PARTS[part](machine)]
    result = Result()
    summaries: dict[str, tuple[float, list[Verdict]]] = {}
    rows = _measure_all(cases, start + budget, show, tools or Tools(), result)
    for number, case in enumerate(cases):
        verdicts = [judge(goal, rows.get(number)) for goal in case.goals]
        if case.summary is None:
            result.verdicts += verdicts
        else:
            summaries.setdefault(case.summary, (case.goals[0].least, []))[1].extend(verdicts)
    for what, (least, verdicts) in summaries.items():
        result.verdicts.append(worst_of(what, f">= {least:g} x PyTorch", verdicts))
        result.details += verdicts
    result.seconds = time.perf_counter() - start
    return result


def _measure_all(
    cases: Sequence[Case], end: float, show: Callable[[str], None], tools: Tools, result: Result
) -> dict[int, Rows]:
    """Rows by the number of the case; none if the machine was busy at each of its tries.

    A case that finds the machine busy waits at the end of the queue: checks and first calls would take all the time.
    """
    queue = deque(number for number, case in enumerate(cases) if case.is_measured)
    tries, rows = Counter[int](), dict[int, Rows]()
    while queue and (left := end - time.perf_counter()) > 0:
        number = queue.popleft()
        case = cases[number]
        if tools.is_busy():
            tries[number] += 1
            rows[number] = {}
            if tries[number] < TRIES:
                queue.append(number)
            continue
        now = time.perf_counter()
        rows[number] = tools.measure(case, now + share(case, [cases[one] for one in queue], left))
        result.samples.append(_sample(case, rows[number], time.perf_counter() - now))
        for one in (judge(goal, rows[number]) for goal in case.goals):
            if one.status != NOT_HERE:
                show(f"  {one.what}: {one.measured or one.status}")
    return rows


def is_busy() -> bool:
    """Whether threads wait for a core for more than a fifth of a tenth of a second, three times in a row."""
    a = torch.ones(256, 256)
    for _ in range(3):
        before, start = seconds_waited(), time.perf_counter()
        while (elapsed := time.perf_counter() - start) < 0.1:
            torch.mm(a, a)
        if seconds_waited() - before < 0.2 * elapsed:
            return False
    return True


def measure_case(case: Case, until: float) -> Rows:
    """Check and time a case; at least :data:`bench.turns.LEAST` turns are tried, however late it is."""

    def rounds(turn: float) -> int:
        return max(LEAST, min(MOST_TURNS, int((until - time.perf_counter()) / max(turn, 1e-9))))

    try:
        return measure(case.workload, "cpu", case.dtype, case.candidates, rounds, PATIENCE, until)
    except Exception as error:  # plain PyTorch in float64 failed: this case is judged as failed, the others go on
        return {name: {"status": failure_of(error)} for name in case.candidates}


def _sample(case: Case, rows: Rows, elapsed: float) -> dict[str, Any]:
    dtype = str(case.dtype).removeprefix("torch.")
    return {"part": case.part, "workload": case.workload.name, "dtype": dtype, "seconds": elapsed, "rows": dict(rows)}

"""How a measurement becomes a pytest-benchmark result.

pytest-benchmark runs one test after another, but candidates must take turns. So the first test of a workload measures
all of its candidates, and each test passes its samples to the ``benchmark`` fixture, which reads them from
:func:`clock`.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.candidates import candidates
from bench.ceilings import floor
from bench.measure import measure
from bench.setup import Setup
from bench.turns import CALM
from bench.workload import Workload
from hrm_kernels.spec import Cost


@dataclass
class Session:
    """The measurements of a run."""

    setup: Setup
    ceilings: dict[str, float] = field(default_factory=dict)
    unmeasured: list[dict[str, Any]] = field(default_factory=list)
    _measured: str = ""
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def row(
        self, suite: str, workload: Workload, name: str, wanted: Sequence[str]
    ) -> tuple[dict[str, Any], list[float]]:
        """A candidate's measurement, and the samples of eager.

        Args:
            wanted: the candidates that take turns.
        """
        if self._measured != f"{suite}: {workload.name}":
            if "torch._dynamo" in sys.modules:  # its limit of recompilations is for one workload
                torch._dynamo.reset()
            chosen = {key: value for key, value in candidates(workload, self.setup).items() if key in wanted}
            self._rows = measure(workload, self.setup.device, self.setup.dtype, chosen, self.setup.rounds)
            self._measured = f"{suite}: {workload.name}"
        eager = next((row for key, row in self._rows.items() if key.startswith("eager")), {})
        return self._rows[name], eager.get("times", [])


def describe(workload: Workload, row: dict[str, Any], eager: Sequence[float], setup: Setup) -> dict[str, Any]:
    """What the JSON says about a measurement besides its times.

    Args:
        eager: the samples of the first candidate.
    """
    return {
        "workload": workload.name,
        "kind": workload.kind,
        "batch": workload.batch,
        "positions": workload.positions,
        "backward": workload.backward,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "device": setup.device,
        "bytes": workload.cost.bytes,
        "operations": workload.cost.operations,
        # turn by turn: what slows the machine for a while slows both
        "times_eager": statistics.median(e / t for e, t in zip(eager, row["times"])) if eager else None,
        "puzzles": workload.puzzles or None,
        "disturbed": row.get("waited", 0.0) > CALM,
        **{key: row.get(key) for key in ("calls", "mode", "launches", "error", "solved", "segments", "outside")},
    }


def against_ceilings(ceilings: dict[str, float], seconds: float, cost: Cost, dtype: str) -> dict[str, Any]:
    """How close a time is to its floor, and what limits it."""
    least, bound = floor(cost, ceilings, dtype)
    return {"bound": bound, "of_ceiling": least / seconds} if least else {"bound": None, "of_ceiling": None}


_now = 0.0


def clock() -> float:
    """The timer of the benchmarks: it advances by the samples of :func:`report_samples`."""
    return _now


def report_samples(benchmark: Any, times: Sequence[float], information: dict[str, Any]) -> None:
    """Make the ``benchmark`` fixture of a test whose timer is :func:`clock` record ``times``."""
    remaining = list(times)

    def advance() -> None:
        global _now
        _now = remaining.pop(0) if remaining else 0.0  # from 0, since a sum would round

    def rewind() -> None:
        global _now
        _now = 0.0

    benchmark.extra_info.update(information)
    benchmark.pedantic(advance, setup=rewind, rounds=len(remaining))

"""What the ``bench_*.py`` share: which candidates a workload has here, and their measurements, made in turns.

pytest-benchmark runs one test after another; ours must take turns. So the first test of a workload measures all of its
candidates, and each test hands its own samples to the ``benchmark`` fixture, which reads them from :func:`clock`.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import timing
from bench.ceilings import compiler, floor, multiply_adds
from bench.peers import PEERS
from bench.timing import Candidate, on_backend
from bench.workloads import Workload

BACKENDS: dict[str, dict[str, str | None]] = {
    "cpu": {"cpu": "cpu"},
    "cuda": {"cuda": "cuda", "triton": "triton", "automatic": None},
}
"""Ours, by device; None: each op takes the first that can serve it, as for a user."""

COMPILED_BY_DEFAULT = ("transformer_block 8 x 82",)
"""On a CPU torch.compile takes up to minutes; ``--full`` compiles the rest."""


@dataclass(frozen=True)
class Setup:
    """What is measured: from the command line; ``seconds`` of turns for a workload, None for the usual."""

    device: str
    dtype: torch.dtype
    full: bool
    models: tuple[Path, ...] = ()
    seconds: float | None = None

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def rounds(self) -> Callable[[float], int]:
        seconds, least, most = (10, 9, 101) if self.full else (1.5, 5, 51)
        return timing.rounds_for(self.seconds or seconds, least, most)


def candidates(workload: Workload, setup: Setup) -> dict[str, Candidate]:
    """By name, ``eager`` first: plain PyTorch, compiled, other packages', and each backend of ours."""
    found: dict[str, Candidate] = {}
    eager = workload.plain or on_backend("reference", workload.op)
    if workload.ways:
        for backend, name in {"eager": "reference", **BACKENDS[setup.device]}.items():
            proof = on_backend(name, workload.op)
            found |= {f"{backend}, {way}": Candidate(on_backend(name, op), proof) for way, op in workload.ways.items()}
        return found
    found["eager"] = Candidate(eager)

    def compiled(mode: str | None) -> Candidate:
        if workload.compiling is not None:
            return Candidate(workload.compiling(lambda function: _Compiled(function, mode)))
        # (the choice of a backend stays outside: it would break the graph)
        return Candidate(on_backend("reference", _Compiled(workload.plain or workload.op, mode)))

    if workload.compiled and (setup.full or setup.device == "cuda" or workload.name in COMPILED_BY_DEFAULT):
        found["compile"] = compiled(None)
        if setup.full:
            # where we capture a graph ourselves, its own would stand in the way
            found["compile, max-autotune"] = compiled(
                "max-autotune-no-cudagraphs" if workload.graph else "max-autotune"
            )
    for peer in PEERS:
        if peer.kind == workload.kind:
            found[peer.name] = Candidate(peer.op, checked=peer.same, absent=peer.absent(setup.device))
    found |= {shown: Candidate(on_backend(name, workload.op)) for shown, name in BACKENDS[setup.device].items()}
    if setup.device == "cpu" and workload.kind == "segment":
        absent = None if compiler() else "there is no C++ compiler"
        found["multiply-adds alone"] = Candidate(multiply_adds(workload.operations), checked=False, absent=absent)
    return found


class _Compiled:
    """``torch.compile`` of a function, when it is called first: importing the compiler alone takes seconds."""

    def __init__(self, op: Callable[..., Any], mode: str | None) -> None:
        self.op, self.mode = op, mode
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            self.compiled = torch.compile(self.op, dynamic=False, mode=self.mode)
        return self.compiled(*arguments)


def describe(workload: Workload, row: dict[str, Any], eager: Sequence[float], setup: Setup) -> dict[str, Any]:
    """What a measurement says beside its times; ``eager`` are the samples of the first candidate."""
    return {
        "workload": workload.name,
        "kind": workload.kind,
        "batch": workload.size[0],
        "positions": workload.size[1],
        "backward": workload.backward,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "device": setup.device,
        "bytes": workload.bytes,
        "operations": workload.operations,
        # turn by turn, so that what slows the machine for a while slows both
        "times_eager": statistics.median(e / t for e, t in zip(eager, row["times"])) if eager else None,
        "puzzles": workload.puzzles or None,
        "disturbed": row.get("waited", 0.0) > timing.CALM,
        **{key: row.get(key) for key in ("calls", "mode", "launches", "error", "solved", "segments", "outside")},
    }


def against(ceilings: dict[str, float], seconds: float, moved: float, operations: float) -> dict[str, Any]:
    """How close a time comes to the least that bytes and operations allow, and which of them binds."""
    least, bound = floor(moved, operations, ceilings)
    return {"bound": bound, "of_ceiling": least / seconds} if least else {"bound": None, "of_ceiling": None}


@dataclass
class Session:
    """The measurements of a run."""

    setup: Setup
    ceilings: dict[str, float] = field(default_factory=dict)
    unmeasured: list[dict[str, Any]] = field(default_factory=list)
    _name: str = ""
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def row(
        self, suite: str, workload: Workload, name: str, wanted: Sequence[str]
    ) -> tuple[dict[str, Any], list[float]]:
        """A candidate's measurement, and eager's samples. ``wanted`` are the candidates that take turns."""
        if self._name != f"{suite}: {workload.name}":
            if "torch._dynamo" in sys.modules:  # the limit of recompilations counts anew for each workload
                torch._dynamo.reset()
            chosen = {key: value for key, value in candidates(workload, self.setup).items() if key in wanted}
            rows = timing.measure(workload, self.setup.device, self.setup.dtype, chosen, self.setup.rounds)
            self._name, self._rows = f"{suite}: {workload.name}", rows
        eager = next((row for key, row in self._rows.items() if key.startswith("eager")), {})
        return self._rows[name], eager.get("times", [])


_now = 0.0


def clock() -> float:
    """The time by which pytest-benchmark measures: that of the samples it is given."""
    return _now


def hand_over(benchmark: Any, times: Sequence[float], information: dict[str, Any]) -> None:
    """Make the ``benchmark`` fixture (of a test marked with :func:`clock` as its timer) take ``times`` as measured."""
    left = list(times)

    def pass_time() -> None:
        global _now
        # exact: sums would round
        _now = left.pop(0) if left else 0.0

    def rewind() -> None:
        global _now
        _now = 0.0

    benchmark.extra_info.update(information)
    benchmark.pedantic(pass_time, setup=rewind, rounds=len(left))

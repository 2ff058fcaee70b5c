"""Time the ops and the published model on a GPU: ``python -m bench.gpu.timings FILE`` appends one JSON line each.

A run that breaks off can be repeated with the same file: it continues after the workload that broke it.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.ceilings import measure_ceilings
from bench.gpu import suites
from bench.gpu.suites import SUITES
from bench.measure import DTYPES, Candidate, measure
from bench.workload import Workload, on_backend

COMPILE = "torch.compile"
ROUNDS, QUICK_ROUNDS, TINY_ROUNDS = 20, 7, 2


def summary(times: list[float]) -> dict[str, float]:
    """Median, and the 10th and 90th percentile."""
    tenths = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return {"seconds": statistics.median(times), "low": tenths[0], "high": tenths[-1]}


def attempt_of(line: dict[str, Any]) -> tuple[str, bool]:
    """The workload of a line, and whether it was compiled: compiled ones are timed apart."""
    return line["workload"], line.get("backend") == COMPILE


class Timings:
    """The file of a run, and what it already holds."""

    def __init__(self, file: Path, options: argparse.Namespace) -> None:
        self.file, self.options, self._suite = file, options, SUITES[options.suite]
        lines = file.read_text().splitlines() if file.exists() else []
        self._started = {(line["workload"], line.get("backend")) for line in map(json.loads, lines)}
        self._deadline = time.monotonic() + options.seconds

    def run(self) -> None:
        """Time everything that the file does not hold yet.

        Raises:
            RuntimeError: a CUDA error, after which nothing else can run in this process.
        """
        options = self.options
        if ("ceilings", None) not in self._started:
            self._write(workload="ceilings", **measure_ceilings(options.device, options.tiny))
        try:
            chosen = list(self._suite.workloads(options.tiny))
        except ImportError as error:
            chosen = list(suites.ops(options.tiny)) if self._suite.compiled else []
            if ("whole models", "all") not in self._started:
                self._write(workload="whole models", backend="all", status=f"failed: {error}")
        for workload in chosen:
            if not (options.quick and self._suite.compiled and "S=901" in workload.name):
                self._time(workload, "all")
        if self._suite.compiled and not (options.quick or options.tiny):
            for workload in chosen:  # last, since it takes about a minute each
                if workload.is_compiled:
                    self._time(workload, COMPILE)

    def _time(self, workload: Workload, which: str) -> None:
        if (workload.name, which) in self._started:
            return
        if time.monotonic() > self._deadline:
            self._write(workload=workload.name, backend=which, status="skipped: out of time")
            return
        self._write(workload=workload.name, backend=which, status="started")
        device, dtype = self.options.device, self.options.dtype
        common = {"workload": workload.name, "dtype": dtype}
        try:
            rows = measure(workload, device, DTYPES[dtype], self._candidates(workload, which), self._rounds)
        except Exception as error:
            status = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
            self._write(**common, backend=which, status=status)
            if "CUDA error" in str(error):
                raise
            return
        for name, row in rows.items():
            row |= summary(row.pop("times")) if "times" in row else {}
            self._write(**common, backend=name, **row, **workload.cost._asdict())
        if device == "cuda":
            torch.cuda.empty_cache()

    def _candidates(self, workload: Workload, which: str) -> dict[str, Candidate]:
        if which == COMPILE:
            torch._dynamo.reset()
            compiled = torch.compile(workload.op, fullgraph=True, dynamic=False)
            return {COMPILE: Candidate(on_backend("reference", compiled))}
        (timed,) = workload.variants.values() if workload.variants else (workload.op,)
        of_backends = {b: Candidate(on_backend(b, timed), on_backend(b, workload.op)) for b in self.options.backends}
        return of_backends | self._suite.more(workload, self.options.device)

    def _rounds(self, seconds_of_a_turn: float) -> int:
        return TINY_ROUNDS if self.options.tiny else QUICK_ROUNDS if self.options.quick else ROUNDS

    def _write(self, **row: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.gpu.timings", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--suite", choices=SUITES, default="timings", help="default: %(default)s")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--backends", nargs="+", default=["reference", "triton"])
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try this script")
    parser.add_argument("--quick", action="store_true", help="fewer turns, no torch.compile, no long sequences")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no workload after that time")
    options = parser.parse_args()
    try:
        Timings(options.file, options).run()
    except Exception as error:
        if "CUDA error" not in str(error):
            raise
        print(f"bench.gpu.timings: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m hrm_kernels.tuning --device cpu``: time both backends of this CPU and write its table."""

import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hrm_kernels import native
from hrm_kernels.tuning import cpu
from hrm_kernels.tuning.cpu import Machine, Table, Times

SECONDS = 0.25
"""For one call of both backends. All calls together take under two minutes on two cores."""


def main(shipped: bool, ops: Sequence[str] = cpu.MEASURED, seconds: float = SECONDS) -> int:
    """Run the command. Returns 0, or 2 if it cannot measure or write.

    Args:
        shipped: write into the tables that come with the package, not into the user's folder.
        ops: to measure.
        seconds: per call.
    """
    from hrm_kernels.tuning import cpu_measure

    if native.load("cpu").reason is not None:
        print(f"tuning: there is nothing to compare with plain PyTorch: {native.load('cpu').reason}", file=sys.stderr)
        return 2
    machine = Machine.here()
    path = cpu.shipped_path(machine) if shipped else cpu.user_path()
    began, times, missing = time.perf_counter(), list[Times](), 0
    for problem in cpu_measure.problems(ops):
        measured = cpu_measure.measure(problem, seconds)
        if measured is None:
            missing += 1
            print(f"{problem}: not measured, other programs were using the cores", flush=True)
            continue
        times.append(measured)
        verdict = "  PyTorch is faster" if measured.pytorch_is_faster else ""
        print(f"{problem}: cpu {measured.cpu:.1f} µs, PyTorch {measured.pytorch:.1f} µs{verdict}", flush=True)
    if not times:
        print("tuning: nothing was measured; try again when the machine is idle", file=sys.stderr)
        return 2
    slower = [one for one in times if one.pytorch_is_faster]
    print(f"{len(times)} calls in {time.perf_counter() - began:.0f} s; PyTorch is faster in {len(slower)}")
    return _write(path, Table(machine, datetime.date.today().isoformat(), tuple(times)))


def _write(path: Path, table: Table) -> int:
    try:
        cpu.write(path, table)
    except OSError as error:
        print(f"tuning: cannot write {path} ({error.strerror or error})", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0

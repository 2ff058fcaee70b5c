"""Is the cpu backend still faster than eager PyTorch? ``python -m bench.ratio`` takes seconds; ``make test`` runs it.

Prints how many times as fast it is, and fails if it is slower in three of four turns. Turns in which threads waited for
a core do not count and are repeated, since load slows eager PyTorch more. With too few undisturbed turns it says so and
judges nothing.
"""

import statistics
import sys
from collections.abc import Iterator

import torch

from bench.candidates import candidates
from bench.measure import measure
from bench.setup import Setup
from bench.sizes import SHORT, Size
from bench.workload import Workload
from bench.workloads import op_workload
from hrm_kernels.backends import available_backends

ROUNDS, ENOUGH = 25, 9  # turns wanted, and needed for a judgement
PATIENCE = 4


def workloads() -> Iterator[Workload]:
    for op in ("add_rms_norm", "swiglu", "rope_attention"):
        yield op_workload(op, Size(4, SHORT), backward=True, itemsize=4)
    for backward in (False, True):
        yield op_workload("transformer_block", Size(1, SHORT), backward, itemsize=4)


def is_slower(ratios: list[float]) -> bool:
    """Whether three quarters of ``ratios``, eager's time divided by ours, are below 1."""
    return statistics.quantiles(ratios, n=4, method="inclusive")[2] < 1


def summary(ratios: list[float], disturbed: int) -> str:
    """The median ratio of the undisturbed turns, or why it is not judged."""
    turns = f"other work disturbed {disturbed} of {len(ratios) + disturbed} turns"
    if len(ratios) < ENOUGH:
        return f"not judged: {turns}; run python -m bench.ratio again when the machine is quiet"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} x eager (quarters {low:.2f}, {high:.2f})" + (f"; {turns}" if disturbed else "")


def main() -> int:
    reason = available_backends()["cpu"]
    if reason is not None:
        print(f"bench.ratio: nothing to compare: {reason}")
        return 0
    setup = Setup("cpu", torch.float32, full=False)
    failed = []
    for workload in workloads():
        chosen = {name: one for name, one in candidates(workload, setup).items() if name in ("eager", "cpu")}
        rows = measure(workload, "cpu", torch.float32, chosen, lambda turn: ROUNDS, PATIENCE)
        if rows["cpu"]["status"] != "ok":
            failed.append(f"{workload.name}: {rows['cpu']['status']}")
            continue
        ratios = [eager / ours for eager, ours in zip(rows["eager"]["times"], rows["cpu"]["times"])]
        print(f"{workload.name}: {summary(ratios, rows['cpu']['disturbed'])}")
        if len(ratios) >= ENOUGH and is_slower(ratios):
            failed.append(f"{workload.name}: slower than eager PyTorch, {statistics.median(ratios):.2f} x")
    for line in failed:
        print(f"bench.ratio: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Is the cpu backend still faster than eager PyTorch? ``python -m bench.ratio``, seconds; a part of ``make test``.

Prints how many times as fast it is, and fails where it is slower: in three of four turns. Turns in which threads waited
for a core do not count and are taken again: other work slows eager's threads more than ours. Where too few are left, it
says so and judges nothing.
"""

import statistics
import sys
from collections.abc import Iterator

import torch

from bench import timing
from bench.suite import Setup, candidates
from bench.workloads import Workload, of_op
from hrm_kernels.backends import available_backends

ROUNDS, ENOUGH = 25, 9  # turns wanted, and needed for a judgement
PATIENCE = 4


def workloads() -> Iterator[Workload]:
    for op in ("add_rms_norm", "swiglu", "rope_attention"):
        yield of_op(op, 4, 82, True, itemsize=4)
    for backward in (False, True):
        yield of_op("transformer_block", 1, 82, backward, itemsize=4)


def slower(ratios: list[float]) -> bool:
    """Whether three quarters of ``ratios``, eager's time over ours, are below 1."""
    return statistics.quantiles(ratios, n=4, method="inclusive")[2] < 1


def told(ratios: list[float], disturbed: int) -> str:
    """What ``ratios`` of undisturbed turns come to, where there are enough."""
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
        rows = timing.measure(workload, "cpu", torch.float32, chosen, lambda turn: ROUNDS, PATIENCE)
        if rows["cpu"]["status"] != "ok":
            failed.append(f"{workload.name}: {rows['cpu']['status']}")
            continue
        ratios = [eager / ours for eager, ours in zip(rows["eager"]["times"], rows["cpu"]["times"])]
        print(f"{workload.name}: {told(ratios, rows['cpu']['disturbed'])}")
        if len(ratios) >= ENOUGH and slower(ratios):
            failed.append(f"{workload.name}: slower than eager PyTorch, {statistics.median(ratios):.2f} x")
    for line in failed:
        print(f"bench.ratio: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run small problems of every op, forward and backward, for a checker that watches the kernels:

    compute-sanitizer --tool memcheck python -m bench.sanitize
    python -m bench.sanitize --repeats 20            # the same input must give the same output, bit for bit

Ops that the backend cannot run are listed as left out.
"""

import argparse
import sys
import time

import torch

import hrm_kernels
from bench.measure import DTYPES
from bench.turns import synchronize
from bench.workload import Workload
from bench.workloads import small_workloads

OUT_OF_TIME = 3
"""Exit code if nothing was wrong, but not everything has run."""


def run(
    backend: str, device: str, dtypes: list[str], repeats: int, quick: bool, seconds: float
) -> tuple[list[str], bool]:
    """Run the problems; return what was wrong, and whether all of them have run."""
    wrong: list[str] = []
    left_out: set[str] = set()
    done = 0
    deadline = time.monotonic() + seconds
    for dtype in dtypes:
        for workload in small_workloads(DTYPES[dtype], quick):
            if time.monotonic() > deadline:
                print(f"out of time after {done} problems")
                return wrong, False
            name = f"{workload.name} in {dtype}"
            try:
                wrong += [f"{name}: {what}" for what in _repeat(workload, backend, device, DTYPES[dtype], repeats)]
                done += 1
            except hrm_kernels.BackendUnavailable as error:
                left_out.add(str(error))
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
                if "CUDA error" in str(error):
                    return wrong, False  # nothing else can run in this process
    print(f"{done} problems, {repeats} times each, on backend {backend}")
    for reason in sorted(left_out):
        print(f"left out: {reason}")
    return wrong if done else [*wrong, "no problem ran"], True


def _repeat(workload: Workload, backend: str, device: str, dtype: torch.dtype, repeats: int) -> list[str]:
    """Run a problem ``repeats`` times; return what was wrong with its results."""
    wrong: list[str] = []
    first: list[torch.Tensor] = []
    for _ in range(repeats):
        arguments = workload.make(device, dtype, 0)
        with hrm_kernels.use_backend(backend):
            results = [t.clone() for t in workload.call(workload.op, arguments)]
        synchronize(device)
        first = first or results
        for index, (now, then) in enumerate(zip(results, first, strict=True)):
            if not now.isfinite().all():
                wrong.append(f"result {index} is not finite")
            if not torch.equal(now.nan_to_num(), then.nan_to_num()):
                wrong.append(f"result {index} differs from call to call")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.sanitize", description=__doc__)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no problem after that time")
    options = parser.parse_args()
    wrong, ended = run(options.backend, options.device, options.dtypes, options.repeats, options.quick, options.seconds)
    for line in sorted(set(wrong)):
        print(f"wrong: {line}")
    return 1 if wrong else 0 if ended else OUT_OF_TIME


if __name__ == "__main__":
    sys.exit(main())

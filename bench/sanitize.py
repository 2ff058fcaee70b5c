"""Small problems of every op once, forward and backward, for a checker that watches the kernels:

    compute-sanitizer --tool memcheck python -m bench.sanitize
    python -m bench.sanitize --repeats 20            # the same input must give the same output, bit for bit

An op that the backend can't serve is named and left out.
"""

import argparse
import sys
import time

import torch

import hrm_kernels
from bench.workloads import small

OUT_OF_TIME = 3  # the exit code where nothing was wrong, but not everything has run

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def run(
    backend: str, device: str, dtypes: list[str], repeats: int, quick: bool, seconds: float
) -> tuple[list[str], bool]:
    """Run the problems; returns what was wrong, and whether all have run."""
    wrong: list[str] = []
    done, left_out = 0, set()
    deadline = time.monotonic() + seconds
    for dtype in dtypes:
        for workload in small(device, DTYPES[dtype], quick):
            if time.monotonic() > deadline:
                print(f"out of time after {done} problems")
                return wrong, False
            name = f"{workload.name} in {dtype}"
            first: list[torch.Tensor] = []
            try:
                for _ in range(repeats):
                    arguments = workload.make(device, DTYPES[dtype], 0)
                    with hrm_kernels.use_backend(backend):
                        results = [t.clone() for t in workload.call(workload.op, arguments)]
                    if device == "cuda":
                        torch.cuda.synchronize()
                    first = first or results
                    for index, (now, then) in enumerate(zip(results, first, strict=True)):
                        if not now.isfinite().all():
                            wrong.append(f"{name}: result {index} isn't finite")
                        if not torch.equal(now.nan_to_num(), then.nan_to_num()):
                            wrong.append(f"{name}: result {index} differs from call to call")
                done += 1
            except hrm_kernels.BackendUnavailable as error:
                left_out.add(str(error))
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
                if "CUDA error" in str(error):
                    return wrong, False  # nothing runs after it in this process
    print(f"{done} problems, {repeats} times each, on backend {backend}")
    for reason in sorted(left_out):
        print(f"left out: {reason}")
    return wrong if done else [*wrong, "no problem ran"], True


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.sanitize", description=__doc__)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing after that")
    options = parser.parse_args()
    wrong, ended = run(options.backend, options.device, options.dtypes, options.repeats, options.quick, options.seconds)
    for line in sorted(set(wrong)):
        print(f"wrong: {line}")
    return 1 if wrong else 0 if ended else OUT_OF_TIME


if __name__ == "__main__":
    sys.exit(main())

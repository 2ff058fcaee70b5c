"""What the machine can do at best, measured where and when the rest is measured; ``python -m bench.ceilings``."""

import ctypes
import functools
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import timing

SOURCE = Path(__file__).with_name("fma_peak.cpp")
SMALL = 1 << 20
"""Elements of the copy that stays in the caches: 4 MB read, 4 MB written."""


def measured(device: str) -> dict[str, float]:
    """The ceilings: ``copy_bytes_per_s`` (read plus written), ``matmul_flops_per_s``.

    On a CPU also ``cached_copy_bytes_per_s`` and, where there is a compiler, ``fma_flops_per_s``; float32 all. There a
    copy also fetches what it overwrites, which nobody counts, so bytes per second are the better of a copy's (twice its
    size) and those of an addition in place (three times).
    """
    if device != "cpu":
        return timing.ceilings(device, tiny=False)
    source = torch.rand(1 << 26)  # 256 MB: beyond any cache
    target = torch.zeros_like(source)
    size = 2048
    a, b = (torch.rand(size, size) for _ in range(2))
    out = torch.empty_like(a)
    small, small_target = source[:SMALL], target[:SMALL]
    replays: dict[str, timing.Replay] = {
        "copy": (lambda: target.copy_(source), 1, "calls"),
        "add": (lambda: target.add_(source), 1, "calls"),
        "cached copy": (lambda: [small_target.copy_(small) for _ in range(20)], 20, "calls"),
        "cached add": (lambda: [small_target.add_(small) for _ in range(20)], 20, "calls"),
        "matmul": (lambda: torch.mm(a, b, out=out), 1, "calls"),
    }
    timing.take_turns(replays, "cpu", 1)
    # the best, not the median: a ceiling is what nothing disturbed
    best = {name: min(times) for name, times in timing.take_turns(replays, "cpu", 7).times.items()}
    found = {
        "copy_bytes_per_s": source.nbytes * max(2 / best["copy"], 3 / best["add"]),
        "cached_copy_bytes_per_s": small.nbytes * max(2 / best["cached copy"], 3 / best["cached add"]),
        "matmul_flops_per_s": 2 * size**3 / best["matmul"],
    }
    peak = _fma_peak(torch.get_num_threads())
    return found if peak is None else found | {"fma_flops_per_s": peak}


def compiler() -> str | None:
    """The C++ compiler, where there is one."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@functools.cache
def _multiply_adds() -> Callable[[int], float]:
    """Runs so many iterations on the calling thread and returns their operations; it needs a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        options = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([str(compiler()), *options, str(SOURCE), "-o", str(library)], check=True)
        run = ctypes.CDLL(str(library)).fma_peak
    run.restype, run.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_float, ctypes.POINTER(ctypes.c_float)]
    return lambda iterations: run(iterations, 0.5, ctypes.byref(ctypes.c_float()))


def _together(work: Callable[[], None], threads: int) -> None:
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _fma_peak(threads: int) -> float | None:
    """Of all threads together, in operations per second; None without a compiler."""
    if compiler() is None:
        return None
    run = _multiply_adds()

    def rate(iterations: int) -> float:
        barrier, rates = threading.Barrier(threads), []

        def work() -> None:
            barrier.wait()
            start = time.perf_counter()
            operations = run(iterations)
            rates.append(operations / (time.perf_counter() - start))

        _together(work, threads)
        return sum(rates)

    rate(1_000_000)
    return statistics.quantiles([rate(5_000_000) for _ in range(9)], n=10, method="inclusive")[-1]


def multiply_adds(operations: float, pieces: int = 64) -> Callable[..., list[torch.Tensor]]:
    """What does so many operations in registers and nothing else, on torch's number of threads: what this machine gives
    on average, while the ceiling is what it gives at best. The first call needs a :func:`compiler`.
    """

    def all_pieces(*_: Any) -> list[torch.Tensor]:
        run = _multiply_adds()
        iterations = round(operations / run(1) / pieces)
        left = iter(range(pieces))  # each thread takes the next

        def work() -> None:
            for _ in left:
                run(iterations)

        _together(work, torch.get_num_threads())
        return []

    return all_pieces


def floor(moved: float, operations: float, ceilings: dict[str, float]) -> tuple[float, str]:
    """The least seconds for so many bytes and operations, and what binds: ``"memory"`` or ``"arithmetic"``.

    Bytes that fit into the caches are held against the copy that does.
    """
    fits = moved <= 8 * SMALL and "cached_copy_bytes_per_s" in ceilings
    memory = moved / ceilings["cached_copy_bytes_per_s" if fits else "copy_bytes_per_s"]
    arithmetic = operations / ceilings.get("fma_flops_per_s", ceilings["matmul_flops_per_s"])
    return max((memory, "memory"), (arithmetic, "arithmetic"))


if __name__ == "__main__":
    print(json.dumps(measured("cuda" if torch.cuda.is_available() else "cpu"), indent=1))

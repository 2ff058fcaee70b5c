"""Multiply-adds in registers, which no memory slows: the most arithmetic a CPU can do."""

import ctypes
import functools
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

SOURCE = Path(__file__).with_name("fma_peak.cpp")


def compiler() -> str | None:
    """Path of the C++ compiler, or None."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@functools.cache
def _run() -> Callable[[int], float]:
    """Build the function that runs a number of iterations on the calling thread and returns their operations."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        options = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([str(compiler()), *options, str(SOURCE), "-o", str(library)], check=True)
        run = ctypes.CDLL(str(library)).fma_peak
    run.restype, run.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_float, ctypes.POINTER(ctypes.c_float)]
    return lambda iterations: run(iterations, 0.5, ctypes.byref(ctypes.c_float()))


def _on_threads(work: Callable[[], None], threads: int) -> None:
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def peak(threads: int) -> float | None:
    """Operations per second of all threads together; None without a compiler."""
    if compiler() is None:
        return None
    run = _run()

    def rate(iterations: int) -> float:
        barrier, rates = threading.Barrier(threads), []

        def work() -> None:
            barrier.wait()
            start = time.perf_counter()
            operations = run(iterations)
            rates.append(operations / (time.perf_counter() - start))

        _on_threads(work, threads)
        return sum(rates)

    rate(1_000_000)
    return statistics.quantiles([rate(5_000_000) for _ in range(9)], n=10, method="inclusive")[-1]


def multiply_adds(operations: float, pieces: int = 64) -> Callable[..., list[torch.Tensor]]:
    """A function that runs ``operations`` multiply-adds in registers on torch's number of threads.

    It shows what the machine gives on average, where the ceiling is what it gives at best. The first call needs a
    :func:`compiler`.
    """

    def run_all(*_: Any) -> list[torch.Tensor]:
        run = _run()
        iterations = round(operations / run(1) / pieces)
        remaining = iter(range(pieces))  # each thread takes the next piece

        def work() -> None:
            for _ in remaining:
                run(iterations)

        _on_threads(work, torch.get_num_threads())
        return []

    return run_all

"""Multiply-adds in registers, which no memory slows: the most arithmetic a CPU can do."""

import ctypes
import functools
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("fma_peak.cpp")


ALONE = "multiply-adds alone"
"""The candidate that shows what the machine gives meanwhile."""


def absent_reason() -> str | None:
    return None if compiler() else "no C++ compiler"


def compiler() -> str | None:
    """Path of the C++ compiler, or None."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def build(source: Path, options: Sequence[str], folder: Path) -> Path:
    """Compile ``source`` into a shared library in ``folder``.

    Raises:
        subprocess.CalledProcessError: the compiler refuses; ``stderr`` says why.
    """
    library = folder / source.with_suffix(".so").name
    command = [str(compiler()), "-O3", *options, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@functools.cache
def _run() -> Callable[[int], float]:
    """Build the function that runs a number of iterations on the calling thread and returns their operations."""
    with tempfile.TemporaryDirectory() as folder:
        run = ctypes.CDLL(str(build(SOURCE, ["-march=native", "-ffp-contract=fast"], Path(folder)))).fma_peak
    run.restype, run.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_float, ctypes.POINTER(ctypes.c_float)]
    return lambda iterations: run(iterations, 0.5, ctypes.byref(ctypes.c_float()))


def on_threads(work: Callable[[], None], threads: int) -> None:
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def peak(threads: int) -> float | None:
    """Operations per second of all threads together; None without a compiler."""
    if compiler() is None:
        return None
    return best_rate(_run(), threads)


def best_rate(run: Callable[[int], float], threads: int, seconds: float = 0.05) -> float:
    """Operations per second of all threads together, at best.

    Args:
        run: runs a number of iterations on the calling thread and returns their operations.
        seconds: how long one of the tries lasts.
    """

    def rate(iterations: int) -> tuple[float, float]:
        barrier, rates = threading.Barrier(threads), []

        def work() -> None:
            barrier.wait()
            start = time.perf_counter()
            operations = run(iterations)
            rates.append((operations, time.perf_counter() - start))

        on_threads(work, threads)
        return sum(operations / time for operations, time in rates), max(time for _, time in rates)

    iterations = 1
    while (elapsed := rate(iterations)[1]) < seconds / 4:
        iterations = max(2 * iterations, round(iterations * seconds / 2 / max(elapsed, 1e-6)))
    iterations = max(1, round(iterations * seconds / elapsed))
    return statistics.quantiles([rate(iterations)[0] for _ in range(9)], n=10, method="inclusive")[-1]


def multiply_adds(operations: float, pieces: int = 64) -> Callable[..., list[torch.Tensor]]:
    """A function that runs ``operations`` multiply-adds in registers on torch's number of threads.

    It shows what the machine gives on average, where the ceiling is what it gives at best. The first call needs a
    :func:`compiler`.
    """
    return in_pieces(lambda: _run(), operations, pieces)


def in_pieces(make: Callable[[], Callable[[int], float]], operations: float, pieces: int) -> Callable[..., list]:
    """A function that runs ``operations`` of ``make()`` on torch's number of threads, each taking the next piece."""

    def run_all(*_: Any) -> list[torch.Tensor]:
        run = make()
        iterations = max(1, round(operations / run(1) / pieces))
        remaining = iter(range(pieces))

        def work() -> None:
            for _ in remaining:
                run(iterations)

        on_threads(work, torch.get_num_threads())
        return []

    return run_all

"""The most this machine can do, measured when and where everything else is: ``python -m bench.ceilings``."""

import json
import statistics

import torch

from bench import fma, tiles
from bench.turns import Replay, take_turns
from hrm_kernels.spec import Cost

CACHED_ELEMENTS = 1 << 20
"""Of the copy that stays in the caches: 4 MB read, 4 MB written."""


def measure_ceilings(device: str, tiny: bool = False) -> dict[str, float]:
    """The ceilings: ``copy_bytes_per_s`` (read plus written) and ``matmul_flops_per_s``.

    On a CPU also ``cached_copy_bytes_per_s``; with a C++ compiler ``fma_flops_per_s``; and those of
    :func:`bench.tiles.ceilings` that the CPU has.
    """
    return _cpu_ceilings() if device == "cpu" and not tiny else _gpu_ceilings(device, tiny)


def _cpu_ceilings() -> dict[str, float]:
    """In float32.

    A copy also fetches what it overwrites, which is not counted as traffic. So bytes per second are the better of a
    copy (twice its size) and an addition in place (three times).
    """
    source = torch.rand(1 << 26)  # 256 MB: exceeds any cache
    target = torch.zeros_like(source)
    size = 2048
    a, b = (torch.rand(size, size) for _ in range(2))
    out = torch.empty_like(a)
    small, small_target = source[:CACHED_ELEMENTS], target[:CACHED_ELEMENTS]
    replays = {
        "copy": Replay(lambda: target.copy_(source), 1, "calls"),
        "add": Replay(lambda: target.add_(source), 1, "calls"),
        "cached copy": Replay(lambda: [small_target.copy_(small) for _ in range(20)], 20, "calls"),
        "cached add": Replay(lambda: [small_target.add_(small) for _ in range(20)], 20, "calls"),
        "matmul": Replay(lambda: torch.mm(a, b, out=out), 1, "calls"),
    }
    take_turns(replays, "cpu", 1)
    # the best, not the median: nothing may disturb a ceiling
    best = {name: min(times) for name, times in take_turns(replays, "cpu", 7).times.items()}
    ceilings = {
        "copy_bytes_per_s": source.nbytes * max(2 / best["copy"], 3 / best["add"]),
        "cached_copy_bytes_per_s": small.nbytes * max(2 / best["cached copy"], 3 / best["cached add"]),
        "matmul_flops_per_s": 2 * size**3 / best["matmul"],
    }
    threads = torch.get_num_threads()
    peak = fma.peak(threads)
    return ceilings | ({} if peak is None else {"fma_flops_per_s": peak}) | tiles.ceilings(threads)


def _gpu_ceilings(device: str, tiny: bool) -> dict[str, float]:
    """In bfloat16, on random data; ``tiny`` for a try on a CPU."""
    source = torch.randn((1 << 20) if tiny else (1 << 29), device=device)  # 2 GB: exceeds any cache
    target = torch.empty_like(source)
    size = 512 if tiny else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    replays = {
        "copy": Replay(lambda: target.copy_(source), 1, "graph"),
        "matmul": Replay(lambda: torch.mm(a, b, out=out), 1, "graph"),
    }
    take_turns(replays, device, 3)
    times = take_turns(replays, device, 3 if tiny else 20).times
    copy, product = (statistics.median(times[name]) for name in ("copy", "matmul"))
    return {"copy_bytes_per_s": 2 * source.nbytes / copy, "matmul_flops_per_s": 2 * size**3 / product}


def arithmetic_peak(ceilings: dict[str, float], dtype: str) -> float:
    """Operations per second for values of ``dtype``: bfloat16 has units of its own on some CPUs."""
    names = ["fma_flops_per_s"]
    if dtype == "bfloat16":
        names += ["amx_bfloat16_registers_flops_per_s", "avx512_bfloat16_registers_flops_per_s"]
    return max((ceilings[name] for name in names if name in ceilings), default=ceilings["matmul_flops_per_s"])


def floor(cost: Cost, ceilings: dict[str, float], dtype: str = "float32") -> tuple[float, str]:
    """The fewest seconds for a cost, and what limits it: ``"memory"`` or ``"arithmetic"``.

    Bytes that fit into the caches are compared with the copy that does.
    """
    fits = cost.bytes <= 8 * CACHED_ELEMENTS and "cached_copy_bytes_per_s" in ceilings
    memory = cost.bytes / ceilings["cached_copy_bytes_per_s" if fits else "copy_bytes_per_s"]
    arithmetic = cost.operations / arithmetic_peak(ceilings, dtype)
    return max((memory, "memory"), (arithmetic, "arithmetic"))


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measured: dict[str, object] = dict(measure_ceilings(device))
    if device == "cpu":
        measured["absent"] = tiles.absent()
    print(json.dumps(measured, indent=1))

"""``python -m hrm_kernels.tuning``: measure this machine's GPU and write its table beside those that are shipped."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from hrm_kernels.tuning.table import DTYPES, best, path_of, write

ROWS = (16, 32, 82, 164, 328, 656, 1312, 2624, 5248, 10496, 20992, 41984)
"""Tokens of a pass: a few, then one puzzle of S = 82 and twice as many each time."""

D, INNER, HEADS, LAYERS = 512, 1536, 8, 4  # the published module

Timer = Callable[[Callable[[], Any]], float]


def replay_seconds(function: Callable[[], Any]) -> float:
    """Median time of a call inside a CUDA graph, which is how passes run: launching costs nothing there."""
    from triton.testing import do_bench_cudagraph

    return do_bench_cudagraph(function, rep=50, return_mode="median") / 1e3


def measure(
    device: torch.device, dtype: torch.dtype, rows: int, timer: Timer, sizes: Sequence[int] = (D, INNER, HEADS, LAYERS)
) -> dict[str, float]:
    """Seconds of each candidate for a pass of the module over ``rows`` tokens.

    Raises:
        RuntimeError: two candidates disagree.
    """
    from hrm_kernels.nn import rope_tables
    from hrm_kernels.ops.transformer_block import triton_block
    from hrm_kernels.ops.transformer_block.triton_kernels import fits_a_row

    dim, inner, heads, layers = sizes
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    shapes = ((3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
    weights = [random(*shape) * shape[1] ** -0.5 for _ in range(layers) for shape in shapes]
    positions = 82 if rows % 82 == 0 else rows
    tables = rope_tables(positions, dim // heads, device=device)
    shared = triton_block.Shared(rows // positions, *tables, heads, 1e-5)
    x = random(rows, dim)
    found: dict[str, float] = {}
    with torch.no_grad():
        want = triton_block.infer_library(x, weights, shared)
        for name, path in triton_block.PATHS.items():
            if name.startswith("fused") and dtype is torch.float32:  # no tensor cores, and one size of tile
                continue
            if name == "whole_row" and not fits_a_row(x):
                continue
            error = (path(x, weights, shared) - want).abs().max().item()
            if not error < 0.25:  # of values around 1, after a few layers in a narrow dtype
                raise RuntimeError(f"{name} differs from library by {error:.2g} at {rows} rows in {dtype}")
            found[name] = timer(lambda: path(x, weights, shared))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 where it cannot measure or write."""
    parser = argparse.ArgumentParser("python -m hrm_kernels.tuning", description=__doc__)
    parser.add_argument("--device", default="cuda", help="such as cuda:1; default: the current GPU")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tuning: there is no GPU that torch can use; run it on the machine to be tuned", file=sys.stderr)
        return 2
    import triton

    device = torch.device(options.device)
    with torch.cuda.device(device):
        name = torch.cuda.get_device_name()
        table, seconds = {}, {}
        for dtype_name, dtype in DTYPES.items():
            measured = {rows: measure(device, dtype, rows, replay_seconds) for rows in ROWS}
            for rows, times in measured.items():
                said = ", ".join(f"{candidate} {1e6 * time:.1f} µs" for candidate, time in times.items())
                print(f"{dtype_name}, {rows} rows: {said}", flush=True)
            table[dtype_name], seconds[dtype_name] = best(measured), measured
    about = {"device": name, "torch": torch.__version__, "triton": triton.__version__, "seconds": seconds}
    about["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path = path_of(name)
    try:
        write(path, table, about)
    except OSError as error:
        print(f"tuning: {path} cannot be written ({error.strerror or error}); install with -e", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

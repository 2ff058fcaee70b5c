"""How much damping, noise and residuals cost: ``python -m bench.damped`` compares updates on this CPU.

The first table compares damped updates with plain ones: a call is the updates of a segment without gradients
(``recurrent_cycles``, 3 cycles of 6), as an EqR of the published sizes makes them, and smaller ones. The second one is
about segments whose residual is measured: by ``recurrent_segment`` where it writes the states, or by reading the states
before and after a segment of the same updates again (``recurrent_cycles``, and ``reasoning_module`` twice). The values
are checked against the reference first. The calls take turns on one thread, and the CPU time of the fastest turn
counts, because other processes take time from the slower ones.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import hrm_kernels
from bench.sizes import EPS
from hrm_kernels.ops.transformer_block.spec import block, num_heads, tables
from hrm_kernels.spec import Random, Sizes

SIZES = {
    "attention, D 512": Sizes(1, 81, 512, 8, 64, 1536),
    "mlp_t, D 512": Sizes(1, 81, 512, I=1536, mixing=256),
    "attention, D 128": Sizes(1, 81, 128, 2, 64, 512),
    "mlp_t, D 64": Sizes(4, 36, 64, I=256, mixing=256),
}


def calls(sizes: Sizes) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """The plain call and the damped one."""
    random = Random(0, torch.float32)
    states = [random(*sizes.leading, sizes.D) for _ in range(3)]
    layers = [block(sizes, random) for _ in range(sizes.layers)]
    arguments: tuple[Any, ...] = (*states, layers, layers, *tables(sizes, random), num_heads(sizes), 3, 6, EPS)
    rows = len(states[0])
    damping = hrm_kernels.Damping(0.95, 0.01, torch.arange(rows), torch.full((rows,), 21))
    damped: tuple[Any, ...] = (*arguments, damping)
    return lambda: hrm_kernels.recurrent_cycles(*arguments)[0], lambda: hrm_kernels.recurrent_cycles(*damped)[0]


def segments(sizes: Sizes) -> tuple[Callable[[], torch.Tensor], ...]:
    """A segment by its parts, the same with its residual measured afterwards, and in one call that measures it."""
    random = Random(0, torch.float32)
    z_H, z_L, x = (random(*sizes.leading, sizes.D) for _ in range(3))
    layers = [block(sizes, random) for _ in range(sizes.layers)]
    cos, sin, heads = *tables(sizes, random), num_heads(sizes)

    def parts() -> tuple[torch.Tensor, torch.Tensor]:
        new_H, new_L = hrm_kernels.recurrent_cycles(z_H, z_L, x, layers, layers, cos, sin, heads, 2, 2, EPS)
        new_L = hrm_kernels.reasoning_module(new_L, new_H + x, layers, cos, sin, heads, EPS)
        return hrm_kernels.reasoning_module(new_H, new_L, layers, cos, sin, heads, EPS), new_L

    def measured_afterwards() -> torch.Tensor:
        changes = [(new - old).flatten(1) for new, old in zip(parts(), (z_H, z_L))]
        return torch.stack([change.square().sum(1) for change in changes]).sum(0)

    def whole() -> torch.Tensor:
        return hrm_kernels.recurrent_segment(z_H, z_L, x, layers, layers, cos, sin, heads, 2, 2, EPS)[2][:, 0]

    return lambda: parts()[0], measured_afterwards, whole


def check(call: Callable[[], torch.Tensor]) -> None:
    """The result is that of the reference, as far as nineteen updates of float32 can tell."""
    got = call()
    with hrm_kernels.use_backend("reference"):
        want = call()
    error = ((got - want).norm() / want.norm()).item()
    assert error < 1e-3, f"off by {error:.1e} from the reference"


def seconds(call: Callable[[], torch.Tensor]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=30)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    with hrm_kernels.use_backend("cpu"):
        print_updates(turns)
        print_segments(turns)


def print_segments(turns: int) -> None:
    print("\n| segment of 2 x 2 updates | plain | residual afterwards | residual inside |\n| --- | --- | --- | --- |")
    for name, sizes in SIZES.items():
        candidates = segments(sizes)
        for call in candidates:
            check(call)
        times = [[seconds(call) for call in candidates] for _ in range(turns)]
        plain, afterwards, inside = (min(column) for column in zip(*times))
        print(
            f"| {name}, batch {sizes.B} | {plain * 1e3:.2f} ms | {afterwards * 1e3:.2f} ms, {afterwards / plain:.3f} | "
            f"{inside * 1e3:.2f} ms, {inside / plain:.3f} |",
            flush=True,
        )


def print_updates(turns: int) -> None:
    print("| updates | plain | damped | damped / plain |\n| --- | --- | --- | --- |")
    for name, sizes in SIZES.items():
        plain, damped = calls(sizes)
        for call in (plain, damped):
            check(call)
        times = [(seconds(plain), seconds(damped)) for _ in range(turns)]
        one, other = (min(column) for column in zip(*times))
        print(
            f"| {name}, batch {sizes.B} | {one * 1e3:.2f} ms | {other * 1e3:.2f} ms | {other / one:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()

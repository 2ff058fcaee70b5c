"""How much damping and noise cost: ``python -m bench.damped`` compares damped updates with plain ones on this CPU.

A call is all updates of a segment without gradients (``recurrent_cycles``, 3 cycles of 6), as an EqR of the published
sizes makes them, and smaller ones. The values are checked against the reference first. The two take turns on one
thread, and the CPU time of the fastest turn counts, because other processes take time from the slower ones.
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
    print("| updates | plain | damped | damped / plain |\n| --- | --- | --- | --- |")
    for name, sizes in SIZES.items():
        plain, damped = calls(sizes)
        with hrm_kernels.use_backend("cpu"):
            for call in (plain, damped):
                check(call)
            times = [(seconds(plain), seconds(damped)) for _ in range(turns)]
        one, other = (min(column) for column in zip(*times))
        print(
            f"| {name}, batch {sizes.B} | {one * 1e3:.2f} ms | {other * 1e3:.2f} ms | {other / one:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()

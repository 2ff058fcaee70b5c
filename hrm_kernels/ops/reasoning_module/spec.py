from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrm_kernels.damping import Damping
from hrm_kernels.noise import plain_noise
from hrm_kernels.ops.transformer_block import spec as block
from hrm_kernels.ops.transformer_block.weights import Layer
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    z, injection = (random(*sizes.leading, sizes.D) for _ in range(2))
    layers = [block.block(sizes, random) for _ in range(sizes.layers)]
    blocks = (layers, *block.tables(sizes, random), block.num_heads(sizes), 1e-5, sizes.recompute)
    return (z, injection, *blocks, damping(sizes, random)) if sizes.noise else (z, injection, *blocks)


def damping(sizes: Sizes, random: Random) -> Damping:
    """Another weight for each row, noise that shows, and rows at different steps."""
    rows = sizes.B or 0
    seeds = random.integers(rows, below=2**62) - 2**61
    weights = 0.25 + 0.5 * random(rows).sigmoid().float()
    return Damping(weights, sizes.noise, seeds, random.integers(rows, below=1000), first_step=3)


def damped(z: Tensor, updated: Tensor, damping: Damping | None) -> Tensor:
    """The state between z and its update, with noise."""
    if damping is None:
        return updated
    weight, scale, seeds, steps, first = damping
    assert isinstance(weight, Tensor) and seeds is not None and steps is not None
    noise = plain_noise(seeds, steps + first, *z.shape[1:])
    return torch.lerp(z, updated, weight.double()[:, None, None]) + scale * noise


def oracle(
    z: Tensor,
    injection: Tensor,
    layers: Sequence[Layer],
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
    damping: Damping | None = None,
) -> Tensor:
    updated = block.entered(z, injection, layers[0])
    for weights in layers:
        updated = block.oracle(updated, weights, cos, sin, num_heads, eps)
    return damped(z, updated, damping)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    return block.cost_of_blocks(sizes, itemsize, backward, blocks=sizes.layers, passes=sizes.layers, states=3)


SPEC = OpSpec(
    name="reasoning_module",
    schema=(
        "(Tensor z, Tensor injection, Tensor[] layers, Tensor? cos, Tensor? sin, int num_heads, float eps, "
        "bool recompute=False, "
        "Tensor? damping=None, float noise_scale=0., Tensor? seeds=None, Tensor? steps=None, "
        "int first_step=0) -> Tensor"
    ),
    shapes={"z": "[B, S, D]", "injection": "[B, S, D]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=3,
    sizes=(
        *block.BLOCK_SIZES,
        Sizes(2, 5, layers=1, noise=0.5),
        Sizes(3, 18, 20, 3, 6, 30, noise=0.5),
        Sizes(3, 5, 200, mixing=7, layers=1, noise=0.5, recompute=True),
        Sizes(0, 5, layers=1, noise=0.5),
        Sizes(2, 5, layers=1, noise=0.5, pre_norm=True),
    ),
)

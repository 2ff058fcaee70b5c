from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrm_kernels.damping import Damping, following
from hrm_kernels.ops.reasoning_module.spec import damping
from hrm_kernels.ops.reasoning_module.spec import oracle as reasoning_module
from hrm_kernels.ops.recurrent_cycles import spec as recurrent_cycles
from hrm_kernels.ops.transformer_block import spec as block
from hrm_kernels.ops.transformer_block.weights import Layer
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    """With noise, also a weight for each row."""
    arguments = recurrent_cycles.sample(replace(sizes, noise=0.0), random)
    if not sizes.noise:
        return arguments
    return *arguments, 0.25 + 0.5 * random(sizes.B or 0).sigmoid().float(), damping(sizes, random)


def oracle(
    z_H: Tensor,
    z_L: Tensor,
    x: Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: Tensor | None = None,
    damping: Damping | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All updates in one list, ``L L H L L H``."""
    states = {"H": z_H, "L": z_L}
    for module in (["L"] * L_cycles + ["H"]) * H_cycles:
        injection, layers = (states["H"] + x, L_layers) if module == "L" else (states["L"], H_layers)
        states[module] = reasoning_module(states[module], injection, layers, cos, sin, num_heads, eps, damping=damping)
        damping = following(damping)
    starts, ends = torch.stack([z_H, z_L], 1), torch.stack([states["H"], states["L"]], 1)  # [B, 2, S, D]
    share = 1.0 if weight is None else weight.double().view(-1, 1, 1, 1)
    moved = share * ends + (1 - share) * starts
    squares = [one.square().flatten(1).sum(1) for one in (ends - starts, moved)]
    return moved[:, 0], moved[:, 1], torch.stack(squares, 1)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """It has no backward. The cost is that of two modules of equally many blocks."""
    updates = sizes.H_cycles * (sizes.L_cycles + 1)
    return block.cost_of_blocks(sizes, itemsize, False, 2 * sizes.layers, updates * sizes.layers, states=5)


SPEC = OpSpec(
    name="recurrent_segment",
    schema=(
        "(Tensor z_H, Tensor z_L, Tensor x, Tensor[] H_layers, Tensor[] L_layers, Tensor? cos, Tensor? sin, "
        "int num_heads, int H_cycles, int L_cycles, float eps, Tensor? weight=None, "
        "Tensor? damping=None, float noise_scale=0., Tensor? seeds=None, Tensor? steps=None, "
        "int first_step=0) -> (Tensor, Tensor, Tensor)"
    ),
    shapes={"z_H": "[B, S, D]", "z_L": "[B, S, D]", "x": "[B, S, D]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=5,
    differentiates=False,
    sizes=(
        Sizes(2, 5, layers=1, H_cycles=1),
        Sizes(3, 18, 20, 3, 6, 30, layers=1, H_cycles=1, L_cycles=1, noise=0.5),
        Sizes(2, 5, 72, mixing=6, layers=1, H_cycles=1, L_cycles=1, noise=0.5),
        Sizes(0, 5, layers=1),
        Sizes(2, 5, H_cycles=1, L_cycles=1, pre_norm=True),
        Sizes(3, 18, 20, 3, 6, 30, H_cycles=1, L_cycles=1, noise=0.5, pre_norm=True),
    ),
)

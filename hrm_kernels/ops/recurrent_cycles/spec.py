from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hrm_kernels.damping import Damping, following
from hrm_kernels.ops.reasoning_module.spec import damping
from hrm_kernels.ops.reasoning_module.spec import oracle as reasoning_module
from hrm_kernels.ops.transformer_block import spec as block
from hrm_kernels.ops.transformer_block.weights import Layer
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    """As many H blocks as ``layers``, and one L block less, but one at least: the modules may differ."""
    states = [random(*sizes.leading, sizes.D) for _ in range(3)]
    H = [block.block(sizes, random) for _ in range(sizes.layers)]
    L = [block.block(sizes, random) for _ in range(max(1, sizes.layers - 1))]
    cycles = (block.num_heads(sizes), sizes.H_cycles, sizes.L_cycles, 1e-5)
    arguments = (*states, H, L, *block.tables(sizes, random), *cycles)
    return (*arguments, damping(sizes, random)) if sizes.noise else arguments


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
    damping: Damping | None = None,
) -> tuple[Tensor, Tensor]:
    """All updates in one list, ``L L H L L H``, without the last of each module."""
    updates = (["L"] * L_cycles + ["H"]) * H_cycles
    for module in updates[:-2]:
        if module == "L":
            z_L = reasoning_module(z_L, z_H + x, L_layers, cos, sin, num_heads, eps, damping=damping)
        else:
            z_H = reasoning_module(z_H, z_L, H_layers, cos, sin, num_heads, eps, damping=damping)
        damping = following(damping)
    return z_H, z_L


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """It has no backward. The cost is that of two modules of equally many blocks."""
    updates = sizes.H_cycles * (sizes.L_cycles + 1) - 2
    blocks, passes = 2 * sizes.layers, updates * sizes.layers
    return block.cost_of_blocks(sizes, itemsize, False, blocks, passes, states=5)


SPEC = OpSpec(
    name="recurrent_cycles",
    schema=(
        "(Tensor z_H, Tensor z_L, Tensor x, Tensor[] H_layers, Tensor[] L_layers, Tensor? cos, Tensor? sin, "
        "int num_heads, int H_cycles, int L_cycles, float eps, "
        "Tensor? damping=None, float noise_scale=0., Tensor? seeds=None, Tensor? steps=None, "
        "int first_step=0, str? eight_bit=None) -> (Tensor, Tensor)"
    ),
    shapes={"z_H": "[B, S, D]", "z_L": "[B, S, D]", "x": "[B, S, D]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=5,
    differentiates=False,
    sizes=(
        Sizes(2, 5, layers=1),
        Sizes(2, 5, H_cycles=1, L_cycles=1),
        Sizes(2, 5, H_cycles=1, L_cycles=3),
        Sizes(3, 21, H_cycles=2, L_cycles=2),
        Sizes(2, 5, H_cycles=3, L_cycles=1),
        Sizes(3, 21, H_cycles=1, L_cycles=3, rope=False),
        Sizes(3, 21, H_cycles=3, L_cycles=1),
        Sizes(1, 1, 20, 3, 6, 30),
        Sizes(0, 5),
        Sizes(2, 5, mixing=6),
        Sizes(3, 21, mixing=40, H_cycles=3, L_cycles=1),
        Sizes(1, 1, 20, I=30, mixing=3, H_cycles=1, L_cycles=3),
        Sizes(0, 5, mixing=6),
        Sizes(2, 5, layers=1, noise=0.5),
        Sizes(3, 5, 20, 3, 6, 30, L_cycles=3, noise=0.5),
        Sizes(2, 5, 200, mixing=6, layers=1, noise=0.5),
        Sizes(0, 5, layers=1, noise=0.5),
        Sizes(2, 5, pre_norm=True),
        Sizes(3, 18, 20, 3, 6, 30, L_cycles=1, noise=0.5, pre_norm=True),
    ),
)

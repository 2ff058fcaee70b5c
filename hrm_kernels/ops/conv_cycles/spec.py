from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hrm_kernels.ops.add_rms_norm.spec import oracle as add_rms_norm
from hrm_kernels.ops.conv_cycles.weights import ConvBlockWeights
from hrm_kernels.ops.conv_swiglu.spec import oracle as conv_swiglu
from hrm_kernels.ops.rope_attention.spec import oracle as rope_attention
from hrm_kernels.ops.transformer_block import spec as block
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    z, injection = (random(*sizes.leading, sizes.D) for _ in range(2))
    layers = [
        ConvBlockWeights._make((*block.block(sizes, random), random(sizes.I, 2), random(sizes.I)))
        for _ in range(sizes.layers)
    ]
    return z, injection, layers, *block.tables(sizes, random), sizes.H, sizes.H_cycles, 1e-5


def oracle(
    z: Tensor,
    injection: Tensor,
    layers: Sequence[ConvBlockWeights],
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    cycles: int,
    eps: float,
) -> Tensor:
    for number in range(cycles * len(layers)):
        qkv, o, gate_up, down, conv, conv_bias = layers[number % len(layers)]
        if number % len(layers) == 0:
            z = z + injection
        z = add_rms_norm(z, rope_attention(z @ qkv.T, cos, sin, num_heads) @ o.T, eps)
        z = add_rms_norm(z, conv_swiglu(z @ gate_up.T, conv, conv_bias) @ down.T, eps)
    return z


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """Nothing counts for the convolution."""
    passes = sizes.H_cycles * sizes.layers
    return block.cost_of_blocks(sizes, itemsize, backward, sizes.layers, passes, states=3)


SPEC = OpSpec(
    name="conv_cycles",
    schema=(
        "(Tensor z, Tensor injection, Tensor[] layers, Tensor? cos, Tensor? sin, int num_heads, int cycles, float eps) "
        "-> Tensor"
    ),
    shapes={"z": "[B, S, D]", "injection": "[B, S, D]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=3,
    sizes=(
        Sizes(2, 5, layers=1, H_cycles=1),
        Sizes(2, 1, 64, 1, 64, 64, layers=1),
        Sizes(1, 17, 64, 1, 64, 96, rope=False, H_cycles=1),
        Sizes(3, 5, 20, 3, 6, 30, H_cycles=3),
        Sizes(2, 82, 128, 2, 64, 256, layers=1, H_cycles=1),
        Sizes(0, 5, 32, 2, 16, 8),
    ),
)

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hrm_kernels.ops.transformer_block import spec as block
from hrm_kernels.ops.transformer_block.weights import Layer
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    z, injection = (random(*sizes.leading, sizes.D) for _ in range(2))
    layers = [block.block(sizes, random) for _ in range(sizes.layers)]
    return z, injection, layers, *block.tables(sizes, random), block.num_heads(sizes), 1e-5, sizes.recompute


def oracle(
    z: Tensor,
    injection: Tensor,
    layers: Sequence[Layer],
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
) -> Tensor:
    z = z + injection
    for weights in layers:
        z = block.oracle(z, weights, cos, sin, num_heads, eps)
    return z


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    return block.cost_of_blocks(sizes, itemsize, backward, blocks=sizes.layers, passes=sizes.layers, states=3)


SPEC = OpSpec(
    name="reasoning_module",
    schema=(
        "(Tensor z, Tensor injection, Tensor[] layers, Tensor? cos, Tensor? sin, int num_heads, float eps, "
        "bool recompute=False) -> Tensor"
    ),
    shapes={"z": "[B, S, D]", "injection": "[B, S, D]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=3,
    sizes=block.BLOCK_SIZES,
)

from typing import Any

from torch import Tensor

from hrm_kernels.ops.add_rms_norm.spec import oracle as add_rms_norm
from hrm_kernels.ops.rope_attention.spec import oracle as rope_attention
from hrm_kernels.ops.swiglu.spec import oracle as swiglu
from hrm_kernels.ops.transformer_block.weights import BlockWeights
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def block(sizes: Sizes, random: Random) -> BlockWeights:
    wide = sizes.H * sizes.d
    shapes = ((3 * wide, sizes.D), (sizes.D, wide), (2 * sizes.I, sizes.D), (sizes.D, sizes.I))
    return BlockWeights(*(random.matrix(*shape) for shape in shapes))


def tables(sizes: Sizes, random: Random) -> tuple[Tensor | None, Tensor | None]:
    assert sizes.S is not None
    return random.tables(sizes.S, sizes.d) if sizes.rope else (None, None)


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    x = random(*sizes.leading, sizes.D)
    return x, block(sizes, random), *tables(sizes, random), sizes.H, 1e-5, sizes.recompute


def oracle(
    x: Tensor,
    weights: BlockWeights,
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
) -> Tensor:
    qkv, o, gate_up, down = weights
    x = add_rms_norm(x, rope_attention(x @ qkv.T, cos, sin, num_heads) @ o.T, eps)
    return add_rms_norm(x, swiglu(x @ gate_up.T) @ down.T, eps)


def weight_count(sizes: Sizes) -> int:
    """Elements of a block's matrices: also its multiply-adds per token, without attention."""
    return 4 * sizes.D * sizes.H * sizes.d + 3 * sizes.D * sizes.I


def cost_of_blocks(sizes: Sizes, itemsize: int, backward: bool, blocks: int, passes: int, states: int) -> Cost:
    """Of ``passes`` through some of ``blocks`` blocks, which read and write ``states`` states.

    With backward, weights are read twice and their gradients written, as are states and their gradients.
    """
    assert sizes.S is not None
    moved = (3 if backward else 1) * blocks * weight_count(sizes)
    moved += (2 if backward else 1) * states * sizes.tokens * sizes.D
    operations = sizes.tokens * (2 * weight_count(sizes) + 4 * sizes.S * sizes.H * sizes.d)
    return Cost(moved * itemsize, (3 if backward else 1) * passes * operations)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    return cost_of_blocks(sizes, itemsize, backward, blocks=1, passes=1, states=2)


BLOCK_SIZES = (
    Sizes(2, 5, layers=1),
    Sizes(),
    Sizes(recompute=True),
    Sizes(2, 1, 64, 2, 32, 96),
    Sizes(2, 1, 64, 1, 64, 64, recompute=True),
    Sizes(1, 17, 64, 1, 64, 96, rope=False),
    Sizes(2, 17, 128, 2, 64, 256),
    Sizes(2, 17, 384, 3, 128, 256),
    Sizes(1, 82, 64, 2, 32, 96),
    Sizes(1, 82, 128, 2, 64, 256, recompute=True),
    Sizes(3, 5, 20, 3, 6, 30),
    Sizes(3, 5, 20, 3, 6, 30, recompute=True),
    Sizes(0, 5, 32, 2, 16, 8),
    Sizes(0, 5, 64, 2, 32, 8, recompute=True),
)

SPEC = OpSpec(
    name="transformer_block",
    schema=(
        "(Tensor x, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, float eps, bool recompute=False) "
        "-> Tensor"
    ),
    shapes={"x": "[B, S, D]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=2,
    sizes=BLOCK_SIZES,
)

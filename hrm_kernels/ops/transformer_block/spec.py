from typing import Any

from torch import Tensor

from hrm_kernels.ops.add_rms_norm.spec import oracle as add_rms_norm
from hrm_kernels.ops.rope_attention.spec import oracle as rope_attention
from hrm_kernels.ops.swiglu.spec import oracle as swiglu
from hrm_kernels.ops.token_mixing import spec as token_mixing
from hrm_kernels.ops.transformer_block.weights import BlockWeights, Layer, MixingBlockWeights, PreNormBlockWeights
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def block(sizes: Sizes, random: Random) -> Layer:
    if sizes.mixing:
        assert sizes.S is not None
        return MixingBlockWeights(
            random.matrix(2 * sizes.mixing, sizes.S),
            random.matrix(sizes.S, sizes.mixing),
            random.matrix(2 * sizes.I, sizes.D),
            random.matrix(sizes.D, sizes.I),
        )
    wide = sizes.H * sizes.d
    shapes = ((3 * wide, sizes.D), (sizes.D, wide), (2 * sizes.I, sizes.D), (sizes.D, sizes.I))
    matrices = [random.matrix(*shape) for shape in shapes]
    if sizes.pre_norm:
        return PreNormBlockWeights._make((*matrices, 0.5 + 0.5 * random(4, sizes.D).sigmoid()))
    return BlockWeights(*matrices)


def tables(sizes: Sizes, random: Random) -> tuple[Tensor | None, Tensor | None]:
    assert sizes.S is not None
    return random.tables(sizes.S, sizes.d) if sizes.rope and not sizes.mixing else (None, None)


def num_heads(sizes: Sizes) -> int:
    return 0 if sizes.mixing else sizes.H


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    x = random(*sizes.leading, sizes.D)
    return x, block(sizes, random), *tables(sizes, random), num_heads(sizes), 1e-5, sizes.recompute


def oracle(
    x: Tensor,
    weights: Layer,
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
) -> Tensor:
    if isinstance(weights, PreNormBlockWeights):
        return pre_norm_oracle(x, weights, cos, sin, num_heads, eps)
    first, second, gate_up, down = weights
    if isinstance(weights, MixingBlockWeights):
        x = token_mixing.oracle(x, first, second, eps)
    else:
        x = add_rms_norm(x, rope_attention(x @ first.T, cos, sin, num_heads) @ second.T, eps)
    return add_rms_norm(x, swiglu(x @ gate_up.T) @ down.T, eps)


def pre_norm_oracle(
    x: Tensor, weights: PreNormBlockWeights, cos: Tensor | None, sin: Tensor | None, num_heads: int, eps: float
) -> Tensor:
    qkv, o, gate_up, down, scales = weights

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    x = x * scales[0] + rope_attention(norm(x) @ qkv.T, cos, sin, num_heads) @ o.T * scales[1]
    return x * scales[0] + swiglu(norm(x) @ gate_up.T) @ down.T * scales[1]


def entered(z: Tensor, injection: Tensor, first: Layer) -> Tensor:
    """What the first block of a module reads."""
    return (
        z * first.scales[2] + injection * first.scales[3] if isinstance(first, PreNormBlockWeights) else z + injection
    )


def weight_count(sizes: Sizes) -> int:
    """Elements of a block's matrices."""
    across = 3 * (sizes.S or 0) * sizes.mixing if sizes.mixing else 4 * sizes.D * sizes.H * sizes.d
    return across + 3 * sizes.D * sizes.I


def multiply_adds(sizes: Sizes) -> int:
    """Of a block, per token."""
    assert sizes.S is not None
    attention = 4 * sizes.D * sizes.H * sizes.d + 2 * sizes.S * sizes.H * sizes.d
    return 3 * sizes.D * sizes.I + (3 * sizes.D * sizes.mixing if sizes.mixing else attention)


def cost_of_blocks(sizes: Sizes, itemsize: int, backward: bool, blocks: int, passes: int, states: int) -> Cost:
    """Of ``passes`` through some of ``blocks`` blocks, which read and write ``states`` states.

    With backward, weights are read twice and their gradients written, as are states and their gradients.
    """
    moved = (3 if backward else 1) * blocks * weight_count(sizes)
    moved += (2 if backward else 1) * states * sizes.tokens * sizes.D
    operations = sizes.tokens * 2 * multiply_adds(sizes)
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
    Sizes(2, 5, mixing=6),
    Sizes(2, 17, 64, I=96, mixing=40, recompute=True),
    Sizes(1, 97, 128, I=256, mixing=256),
    Sizes(3, 1, 20, I=30, mixing=3, layers=1),
    Sizes(3, 18, 20, I=30, mixing=96, layers=3),
    Sizes(9, 5, 200, I=8, mixing=7, recompute=True),
    Sizes(0, 5, 32, I=8, mixing=16),
    Sizes(0, 5, 32, I=8, mixing=16, recompute=True),
    Sizes(2, 5, pre_norm=True),
    Sizes(3, 17, 20, 3, 6, 30, layers=1, recompute=True, pre_norm=True),
    Sizes(0, 5, pre_norm=True),
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

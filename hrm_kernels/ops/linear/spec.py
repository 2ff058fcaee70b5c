import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor, Tensor | None]:
    """From D to I columns."""
    x, weight = random(*sizes.leading, sizes.D), random.matrix(sizes.I, sizes.D)
    return x, weight, random(sizes.I) if sizes.bias else None


def oracle(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.einsum("...i,oi->...o", x, weight)
    return out if bias is None else out + bias


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    products, weights = 3 if backward else 1, sizes.D * sizes.I
    states = (sizes.D + sizes.I) * sizes.tokens
    return Cost(
        ((2 if backward else 1) * states + products * weights) * itemsize, products * 2 * weights * sizes.tokens
    )


SPEC = OpSpec(
    name="linear",
    schema="(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    shapes={"x": "[..., in]", "weight": "[out, in]", "bias": "[out]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=3,
    sizes=tuple(
        Sizes(B, S, D=columns, I=outputs, bias=bias)
        for bias in (True, False)
        for B, S, columns, outputs in (
            (64, None, 512, 11),
            (1, None, 1, 1),
            (1, None, 512, 2),
            (2, None, 512, 2),
            (81, None, 64, 11),
            (5, None, 97, 13),
            (1, None, 97, 300),
            (3, 7, 20, 9),
            (130, None, 300, 700),
            (200, None, 768, 256),
            (7, None, 20_001, 3),
            (0, None, 4, 3),
            (0, None, 8, 4),
        )
    ),
)

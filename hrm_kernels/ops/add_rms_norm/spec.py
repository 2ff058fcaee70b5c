import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor, float]:
    shape = (*sizes.leading, sizes.D)
    return random(*shape, scale=sizes.scale), random(*shape, scale=sizes.scale), 1e-5


def oracle(x: Tensor, residual: Tensor, eps: float) -> Tensor:
    u = x + residual
    return u / torch.sqrt((u * u).sum(-1, keepdim=True) / u.shape[-1] + eps)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    return Cost((7 if backward else 3) * sizes.D * itemsize * sizes.tokens, 0)


SPEC = OpSpec(
    name="add_rms_norm",
    schema="(Tensor x, Tensor residual, float eps) -> Tensor",
    shapes={"x": "[..., D]", "residual": "[..., D]"},
    not_empty=("D",),
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="promote",
    cast=2,
    sizes=(
        Sizes(3, 17, 64),
        Sizes(1, None, 1),
        Sizes(1, None, 2),
        Sizes(3, None, 5),
        Sizes(9, None, 96),
        Sizes(2, 5, 512),
        Sizes(2, 82, 512),
        Sizes(1, 82, 384),
        Sizes(5, None, 768),
        Sizes(7, None, 768),
        Sizes(129, None, 512),
        Sizes(2, None, 1500),
        Sizes(7, None, 20_001),
        Sizes(0, None, 8),
        Sizes(0, 4, 64),
        Sizes(4, 0, 8),
        Sizes(None, None, 33),
    ),
)

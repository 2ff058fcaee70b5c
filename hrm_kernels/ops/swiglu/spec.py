import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Tensor]:
    return (random(*sizes.leading, 2 * sizes.I, scale=3 * sizes.scale),)


def oracle(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return gate / (1 + torch.exp(-gate)) * up


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    return Cost((8 if backward else 3) * sizes.I * itemsize * sizes.tokens, 0)


SPEC = OpSpec(
    name="swiglu",
    schema="(Tensor gate_up) -> Tensor",
    shapes={"gate_up": "[..., 2 I]"},
    not_empty=("I",),
    hint={"gate_up": "pass packed [gate | up]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    sizes=(
        Sizes(3, 17, I=64),
        Sizes(None, None, I=1),
        Sizes(1, None, I=1),
        Sizes(3, None, I=5),
        Sizes(9, None, I=96),
        Sizes(2, 5, I=512),
        Sizes(1, 82, I=384),
        Sizes(7, None, I=768),
        Sizes(2, None, I=1500),
        Sizes(33, None, I=1536),
        Sizes(2, 82, I=1536),
        Sizes(0, None, I=4),
        Sizes(0, 4, I=64),
    ),
)

import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor, Tensor]:
    gate_up = random(*sizes.leading, 2 * sizes.I, scale=2 * sizes.scale)
    return gate_up, random(sizes.I, 2), random(sizes.I)


def oracle(gate_up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Position by position."""
    before, columns = torch.zeros_like(bias), []
    for gate, up in (row.chunk(2, -1) for row in gate_up.unbind(-2)):
        y = gate / (1 + torch.exp(-gate)) * up
        c = weight[:, 0] * before + weight[:, 1] * y + bias
        columns.append(c / (1 + torch.exp(-c)))
        before = y
    return torch.stack(columns, -2) if columns else gate_up[..., : bias.numel()] * weight[:, 0] * bias  # S = 0


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """Of weight and bias, which are small, nothing counts."""
    return Cost((8 if backward else 3) * sizes.I * itemsize * sizes.tokens, 0)


SPEC = OpSpec(
    name="conv_swiglu",
    schema="(Tensor gate_up, Tensor weight, Tensor bias) -> Tensor",
    shapes={"gate_up": "[..., S, 2 I]", "weight": "[I, 2]", "bias": "[I]"},
    not_empty=("I",),
    hint={"gate_up": "pass packed [gate | up]", "weight": "of a Conv1d, pass weight.squeeze(1)"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=3,
    sizes=(
        Sizes(2, 5, I=64),
        Sizes(None, 1, I=1),
        Sizes(2, 1, I=5),
        Sizes(None, 17, I=7),
        Sizes(2, 33, I=520),
        Sizes(1, 82, I=1536),
        Sizes(2, 97, I=8),
        Sizes(0, 4, I=64),
        Sizes(3, 0, I=4),
    ),
)

import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor, Tensor, float]:
    assert sizes.S is not None
    return (
        random(*sizes.leading, sizes.D),
        random.matrix(2 * sizes.I, sizes.S),
        random(sizes.S, sizes.I, scale=0.1),
        1e-5,
    )


def oracle(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """Channel by channel."""
    columns = []
    for t in x.unbind(-1):  # [B, S]
        gate, up = (t @ gate_up.T).chunk(2, -1)
        t = t + (gate / (1 + torch.exp(-gate)) * up) @ down.T
        columns.append(t / torch.sqrt((t * t).mean(-1, keepdim=True) + eps))
    return torch.stack(columns, -1)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """Of the weights each element once; with backward twice, and its gradient."""
    B, S = sizes.leading
    weights, passes = 3 * S * sizes.I, 3 if backward else 1
    moved = (5 if backward else 2) * sizes.D * sizes.tokens + passes * weights
    return Cost(moved * itemsize, passes * 2 * weights * B * sizes.D)


SPEC = OpSpec(
    name="token_mixing",
    schema="(Tensor x, Tensor gate_up, Tensor down, float eps) -> Tensor",
    shapes={"x": "[B, S, D]", "down": "[S, I]", "gate_up": "[2 I, S]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=3,
    sizes=(
        Sizes(2, 7, 5, I=6),
        Sizes(2, 17, 64, I=96),
        Sizes(1, 1, 5, I=3),
        Sizes(3, 9, 8, I=4),
        Sizes(3, 97, 32, I=256),
        Sizes(2, 28, 64, I=256),
        Sizes(1, 916, 8, I=40),
        Sizes(0, 4, 8, I=16),
    ),
)

from typing import Any

import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Any, ...]:
    """B rows of a table of V: identifiers repeat. Gradients are multiples of 1/4: their sums are exact, signs too."""
    assert sizes.B is not None
    weights, ids = random(sizes.V, sizes.D), random.integers(sizes.B, below=sizes.V)
    return weights, ids, (random(sizes.B, sizes.D) * 4).round() / 4, 0.1, 0.2


def oracle(weights: Tensor, ids: Tensor, grads: Tensor, lr: float, weight_decay: float) -> list[Tensor]:
    """Row by row."""
    new = weights.clone()
    for row in ids.unique():
        new[row] = weights[row] * (1 - lr * weight_decay) - lr * torch.sign(grads[ids == row].sum(0))
    return [new]


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """A row, its gradient and its new values."""
    assert sizes.B is not None
    return Cost(3 * itemsize * sizes.B * sizes.D, 0)


SPEC = OpSpec(
    name="sparse_sign_sgd",
    schema=None,
    shapes={"weights": "[E, D]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    differentiates=False,
    changed=lambda weights, *rest: [weights],
    sizes=(Sizes(33, D=96, V=10), Sizes(1, D=1, V=1), Sizes(8, D=5, V=40), Sizes(260, D=3, V=2), Sizes(0, D=8, V=3)),
)

import torch
from torch import Tensor

from hrm_kernels.ops.adam_atan2.step import Step
from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Step]:
    """The fifth step of ``layers`` parameters: one of no element, one of a single one, matrices ``[I, D]``."""
    shapes = [(0,), (1,), *[(sizes.I, sizes.D)] * sizes.layers]
    params, grads, means, squares = (
        [random(*shape, scale=scale) for shape in shapes] for scale in (1.0, sizes.scale, 0.1, 0.1)
    )
    counts = [torch.full((), 4.0, device=random.device) for _ in shapes]
    squares = [square.square() for square in squares]
    return (Step(params, grads, means, squares, counts, None, 1e-2, (0.9, 0.95), 0.1, random.device != "cpu", {}),)


def oracle(step: Step) -> list[Tensor]:
    """Parameter by parameter: ``p (1 - lr decay) - lr / (1 - b1^t) atan2(m, sqrt(v) / sqrt(1 - b2^t))``."""
    params, means, squares = [], [], []
    beta1, beta2 = step.betas
    for p, g, m, v, count in zip(step.params, step.grads, step.exp_avgs, step.exp_avg_sqs, step.steps):
        t = float(count) + 1
        means.append(beta1 * m + (1 - beta1) * g)
        squares.append(beta2 * v + (1 - beta2) * g * g)
        angle = torch.atan2(means[-1], (squares[-1] / (1 - beta2**t)).sqrt())
        params.append(p * (1 - step.lr * step.weight_decay) - step.lr / (1 - beta1**t) * angle)
    return [*params, *means, *squares]


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """Parameter, gradient and two averages are read, all but the gradient written."""
    return Cost(7 * itemsize * sizes.layers * sizes.I * sizes.D, 0)


SPEC = OpSpec(
    name="adam_atan2",
    schema=None,
    shapes={},
    sample=sample,
    oracle=oracle,
    cost=cost,
    differentiates=False,
    changed=lambda step: [*step.params, *step.exp_avgs, *step.exp_avg_sqs],
    sizes=(Sizes(), Sizes(D=3, I=7, scale=1e-2), Sizes(D=1, I=40_001, layers=1), Sizes(D=8, I=64, scale=10.0)),
)

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def adam_atan2(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    lr: Any,
    betas: tuple[float, float],
    weight_decay: float,
    capturable: bool,
    tables: dict,
) -> None:
    beta1, beta2 = betas
    params, grads, exp_avgs, exp_avg_sqs = list(params), list(grads), list(exp_avgs), list(exp_avg_sqs)
    torch._foreach_add_(list(steps), 1)
    if weight_decay != 0:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    denominators = list(torch._foreach_sqrt(exp_avg_sqs))
    if capturable:
        correction1, correction2 = (
            torch._foreach_sub(torch._foreach_pow(beta, [step.double() for step in steps]), 1) for beta in betas
        )
        torch._foreach_neg_(correction1)
        torch._foreach_neg_(correction2)
        torch._foreach_sqrt_(correction2)
        torch._foreach_div_(denominators, [c.to(p.dtype) for c, p in zip(correction2, params, strict=True)])
        sizes = [(lr / c).to(p.dtype) for c, p in zip(correction1, params, strict=True)]
        updates = [torch.atan2(m, d) for m, d in zip(exp_avgs, denominators, strict=True)]
        torch._foreach_mul_(updates, sizes)
        torch._foreach_sub_(params, updates)
    else:
        counts = [step.item() for step in steps]  # on the CPU: no synchronisation
        torch._foreach_div_(denominators, [(1 - beta2**t) ** 0.5 for t in counts])
        for m, d in zip(exp_avgs, denominators, strict=True):
            torch.atan2(m, d, out=d)
        torch._foreach_mul_(denominators, [lr / (1 - beta1**t) for t in counts])
        torch._foreach_sub_(params, denominators)
    if copies is not None:
        torch._foreach_copy_(list(copies), params)

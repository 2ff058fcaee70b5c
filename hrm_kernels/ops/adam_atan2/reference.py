import torch

from hrm_kernels.ops.adam_atan2.step import Step


def adam_atan2(step: Step) -> None:
    beta1, beta2 = step.betas
    lr: float = step.lr  # type: ignore[assignment]  # (or a tensor: the arithmetic is the same)
    params, grads, exp_avgs, exp_avg_sqs = map(list, (step.params, step.grads, step.exp_avgs, step.exp_avg_sqs))
    torch._foreach_add_(list(step.steps), 1)
    if step.weight_decay != 0:
        torch._foreach_mul_(params, 1 - lr * step.weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    denominators = list(torch._foreach_sqrt(exp_avg_sqs))
    if step.capturable:
        correction1, correction2 = (
            torch._foreach_sub(torch._foreach_pow(beta, [count.double() for count in step.steps]), 1)
            for beta in step.betas
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
        counts = [count.item() for count in step.steps]  # on the CPU: no synchronisation
        torch._foreach_div_(denominators, [(1 - beta2**t) ** 0.5 for t in counts])
        for m, d in zip(exp_avgs, denominators, strict=True):
            torch.atan2(m, d, out=d)
        torch._foreach_mul_(denominators, [lr / (1 - beta1**t) for t in counts])
        torch._foreach_sub_(params, denominators)
    if step.copies is not None:
        torch._foreach_copy_(list(step.copies), params)

from collections.abc import Sequence

import torch
from torch import Tensor

from hrm_kernels import native


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    weight_decay: float,
    capturable: bool,
    tables: dict,
) -> None:
    """All parameters in one call; what it writes has a new version afterwards, as after PyTorch's own operations."""
    torch._foreach_add_(list(steps), 1)
    counts = torch.stack([step.detach() for step in steps]).double()
    copies = list(copies or ())
    native.load("cpu").module.adam_atan2(
        [p.detach() for p in params],
        [g.detach().contiguous() for g in grads],
        list(exp_avgs),
        list(exp_avg_sqs),
        copies,
        1 - betas[0] ** counts,
        1 - betas[1] ** counts,
        float(lr),
        *betas,
        weight_decay,
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *copies])


def unsupported(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    *rest: object,
) -> str | None:
    from hrm_kernels.backends import cpu_cannot_run

    if params[0].dtype is not torch.float32:
        return f"its CPU kernel is for float32 parameters, not {str(params[0].dtype).removeprefix('torch.')}"
    if copies is not None and copies[0].dtype is not torch.bfloat16:
        return "its CPU kernel writes copies in bfloat16 only"
    if not all(x.is_contiguous() for group in (params, exp_avgs, exp_avg_sqs, copies or ()) for x in group):
        return "a parameter, its state or its copy is not contiguous"
    return cpu_cannot_run(params[0])

"""The CPU library's step: all parameters in one call."""

import torch

from hrm_kernels import native
from hrm_kernels.backends import cpu_cannot_run
from hrm_kernels.ops.adam_atan2.step import Step


def run(step: Step) -> None:
    torch._foreach_add_(list(step.steps), 1)
    counts = torch.stack([count.detach() for count in step.steps]).double()
    native.load("cpu").module.adam_atan2(
        [p.detach() for p in step.params],
        [g.detach().contiguous() for g in step.grads],
        list(step.exp_avgs),
        list(step.exp_avg_sqs),
        list(step.copies or ()),
        1 - step.betas[0] ** counts,
        1 - step.betas[1] ** counts,
        float(step.lr),
        *step.betas,
        step.weight_decay,
        torch.get_num_threads(),
    )
    step.count_writes()


def unsupported(step: Step) -> str | None:
    dtype = step.params[0].dtype
    if dtype is not torch.float32:
        return f"its CPU kernel is for float32 parameters, not {str(dtype).removeprefix('torch.')}"
    if step.copies is not None and step.copies[0].dtype is not torch.bfloat16:
        return "its CPU kernel writes copies in bfloat16 only"
    if not step.is_contiguous():
        return "a parameter, its state or its copy is not contiguous"
    return cpu_cannot_run(step.params[0])

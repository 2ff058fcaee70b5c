"""The step of :class:`hrm_kernels.optim.AdamATan2` on parameters of one dtype and device."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from hrm_kernels.backends import Backend, Op, cuda_cannot_run, triton_cannot_run
from hrm_kernels.ops.adam_atan2 import cpu_kernels, cuda_kernels, reference
from hrm_kernels.tuning.table import cuda_is_unproven


def _triton(params: Sequence[Tensor], grads: Sequence[Tensor], *arguments: Any) -> None:
    from hrm_kernels.ops.adam_atan2 import triton_kernels

    triton_kernels.step(params, [g.contiguous() for g in grads], *arguments)


def _gpu_unsupported(
    cannot_run: Callable[[Tensor], str | None],
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
) -> str | None:
    reason = cannot_run(params[0])
    if reason is not None:
        return reason
    if not all(x.is_contiguous() for group in (params, exp_avgs, exp_avg_sqs, copies or ()) for x in group):
        return "a parameter, its state or its copy is not contiguous"
    if isinstance(lr, Tensor) and not capturable and lr.device.type != "cpu":
        return "a learning rate on the GPU needs capturable=True"
    if capturable and any(step.device != params[0].device for step in steps):
        return "capturable=True needs the step counts on the parameters' device"
    if not capturable and any(step.device.type != "cpu" for step in steps):
        return "step counts on the GPU, which a step would wait for, need capturable=True"
    return None


_op = Op(
    "adam_atan2",
    None,
    {
        "reference": Backend(reference.adam_atan2),
        "triton": Backend(_triton, partial(_gpu_unsupported, triton_cannot_run)),
        "cuda": Backend(cuda_kernels.step, partial(_gpu_unsupported, cuda_cannot_run), cuda_is_unproven("adam_atan2")),
        "cpu": Backend(cpu_kernels.step, cpu_kernels.unsupported),
    },
)


def adam_atan2(
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
    """One step of all parameters together; everything but grads and lr is changed in place.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: at least one of each, one dtype, one device, the same shapes.
        steps: float32 scalars: on the device if ``capturable``, else on the CPU.
        copies: where the new parameters are written too, in another dtype; None for nowhere.
        lr: a number or a scalar tensor.
        betas, weight_decay: as in :class:`hrm_kernels.optim.AdamATan2`.
        tables: the caller keeps this dictionary from step to step: device memory that a CUDA graph goes on reading.
    """
    _op(params, grads, exp_avgs, exp_avg_sqs, steps, copies, lr, betas, weight_decay, capturable, tables)

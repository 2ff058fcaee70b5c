"""The step of :class:`hrm_kernels.optim.AdamATan2` on parameters of one dtype and device."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from hrm_kernels.backends import Backend, Op, cuda_cannot_run, triton_cannot_run
from hrm_kernels.ops.adam_atan2 import cpu_kernels, cuda_kernels, reference
from hrm_kernels.ops.adam_atan2.spec import SPEC
from hrm_kernels.ops.adam_atan2.step import Step
from hrm_kernels.tuning.table import cuda_is_unproven

__all__ = ["Step", "adam_atan2"]


def _triton(step: Step) -> None:
    from hrm_kernels.ops.adam_atan2 import triton_kernels

    triton_kernels.run(step._replace(grads=[grad.contiguous() for grad in step.grads]))


def _gpu_unsupported(cannot_run: Callable[[Tensor], str | None], step: Step) -> str | None:
    device = step.params[0].device
    reason = cannot_run(step.params[0])
    if reason is not None:
        return reason
    if not step.is_contiguous():
        return "a parameter, its state or its copy is not contiguous"
    if isinstance(step.lr, Tensor) and not step.capturable and step.lr.device.type != "cpu":
        return "a learning rate on the GPU needs capturable=True"
    if step.capturable and any(count.device != device for count in step.steps):
        return "capturable=True needs the step counts on the parameters' device"
    if not step.capturable and any(count.device.type != "cpu" for count in step.steps):
        return "step counts on the GPU, which a step would wait for, need capturable=True"
    return None


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.adam_atan2),
        "triton": Backend(_triton, partial(_gpu_unsupported, triton_cannot_run)),
        "cuda": Backend(cuda_kernels.run, partial(_gpu_unsupported, cuda_cannot_run), cuda_is_unproven("adam_atan2")),
        "cpu": Backend(cpu_kernels.run, cpu_kernels.unsupported),
    },
)


@_op.public
def adam_atan2(step: Step) -> None:
    """One step of all parameters together."""
    _op(step)

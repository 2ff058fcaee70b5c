from typing import Any

import torch

from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import Backend, Op, cpu_cannot_run, cuda_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_shape
from hrm_kernels.ops.stablemax_cross_entropy import cpu_kernels, cuda_kernels, reference
from hrm_kernels.ops.stablemax_cross_entropy.spec import SPEC, WITH_ARGMAX
from hrm_kernels.spec import OpSpec
from hrm_kernels.tuning.table import cuda_is_unproven


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, argmax: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from hrm_kernels.ops.stablemax_cross_entropy import triton_kernels

        loss, total, others, largest = triton_kernels.forward(logits, labels, ignore_index, argmax)
        ctx.save_for_backward(logits, labels, total, others)
        ctx.ignore_index = ignore_index
        ctx.mark_non_differentiable(largest)
        return loss, largest

    @staticmethod
    @first_order(lambda ctx: (reference.with_argmax, (*ctx.saved_tensors[:2], ctx.ignore_index)))
    def backward(ctx: Any, dloss: torch.Tensor, _: Any) -> Any:  # type: ignore[override]
        from hrm_kernels.ops.stablemax_cross_entropy import triton_kernels

        return triton_kernels.backward(dloss.contiguous(), *ctx.saved_tensors, ctx.ignore_index), None, None, None


def _triton(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, argmax: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return _Triton.apply(logits.contiguous(), labels.contiguous(), ignore_index, argmax)


def _cpu_unsupported(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> str | None:
    return cpu_cannot_run(logits)


def _triton_unsupported(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> str | None:
    return triton_cannot_run(logits)


def _cuda_unsupported(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> str | None:
    return cuda_cannot_run(logits)


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.stablemax_cross_entropy),
        "triton": Backend(
            lambda logits, labels, ignore: _triton(logits, labels, ignore, False)[0], _triton_unsupported
        ),
        "cpu": Backend(cpu_kernels.stablemax_cross_entropy, _cpu_unsupported),
        "cuda": Backend(
            cuda_kernels.stablemax_cross_entropy, _cuda_unsupported, cuda_is_unproven("stablemax_cross_entropy")
        ),
    },
)
_op_with_argmax = Op(
    WITH_ARGMAX,
    {
        "reference": Backend(reference.with_argmax),
        "triton": Backend(lambda logits, labels, ignore: _triton(logits, labels, ignore, True), _triton_unsupported),
        "cpu": Backend(cpu_kernels.with_argmax, _cpu_unsupported),
        "cuda": Backend(cuda_kernels.with_argmax, _cuda_unsupported, cuda_is_unproven("stablemax_cross_entropy")),
    },
)


@_op.public
def stablemax_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    """Cross entropy with stablemax in place of softmax: ``-log(s(x_label) / sum(s(x)))`` for each token.

    ``s(x) = x + 1`` for ``x >= 0`` and ``1 / (1 - x + 1e-30)`` below: it grows linearly, so logits cannot overflow.

    Args:
        logits: ``[..., V]``, float32, bfloat16 or float16.
        labels: ``[...]`` int32 or int64, below V, or ``ignore_index``. Values are not checked: that would wait for
            the GPU.
        ignore_index: tokens with this label have loss and gradient 0.

    Returns:
        ``[...]`` float32 (float64 for float64 logits), within 1e-6 relative of float64. ``torch.autocast`` does not
        change the dtype of the logits.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: arXiv 2501.04697, section 5; used by HRM (arXiv 2506.21734), section 2.
    """
    _check(SPEC, logits, labels)
    return _op(logits, labels, ignore_index)


@_op_with_argmax.public
def stablemax_cross_entropy_with_argmax(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`stablemax_cross_entropy` and ``logits.argmax(-1)``, which a model's metrics need, in one pass.

    If several logits are the largest, the argmax is any of their columns.
    """
    _check(WITH_ARGMAX, logits, labels)
    return _op_with_argmax(logits, labels, ignore_index)


def _check(spec: OpSpec, logits: torch.Tensor, labels: torch.Tensor) -> None:
    op = spec.name
    spec.check(logits)
    if not isinstance(labels, torch.Tensor) or labels.dtype not in (torch.int32, torch.int64):
        came = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise TypeError(f"{op}: labels is {came}, expected an int32 or int64 tensor; convert it with .long()")
    check_shape(op, "labels", labels, tuple(logits.shape[:-1]), "the shape of logits without V")
    if labels.device != logits.device:
        raise ValueError(f"{op}: labels is on {labels.device}, expected {logits.device} as logits; move one of them")

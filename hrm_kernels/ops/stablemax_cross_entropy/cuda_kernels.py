"""The cuda backend: one launch of csrc/cuda/stablemax_cross_entropy.cu each way; two floats per token are saved."""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher
from hrm_kernels.ops.stablemax_cross_entropy import reference


def _outputs(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, total, others = (logits.new_empty(labels.shape, dtype=torch.float32) for _ in range(3))
    return loss, total, others, logits.new_empty(labels.shape, dtype=torch.int64)


@launcher(
    "cuda_stablemax_forward(Tensor logits, Tensor labels, int ignore_index) -> (Tensor, Tensor, Tensor, Tensor)",
    _outputs,
)
def forward(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, sum of s over all logits, the same without the label's, argmax; inputs are contiguous."""
    outputs = _outputs(logits, labels, ignore_index)
    native.load("cuda").module.stablemax_forward(logits.detach(), labels, ignore_index, *outputs)
    return outputs


@launcher(
    "cuda_stablemax_backward(Tensor dloss, Tensor logits, Tensor labels, Tensor total, Tensor others, int ignore_index)"
    " -> Tensor",
    lambda dloss, logits, *rest: torch.empty_like(logits),
)
def backward(dloss: Tensor, logits: Tensor, labels: Tensor, total: Tensor, others: Tensor, ignore_index: int) -> Tensor:
    dlogits = torch.empty_like(logits)
    native.load("cuda").module.stablemax_backward(
        dloss.detach(), logits.detach(), labels, total, others, ignore_index, dlogits
    )
    return dlogits


class _Stablemax(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        loss, total, others, argmax = forward(logits, labels, ignore_index)
        ctx.save_for_backward(logits, labels, total, others)
        ctx.ignore_index = ignore_index
        ctx.mark_non_differentiable(argmax)
        return loss, argmax

    @staticmethod
    @first_order(lambda ctx: (reference.with_argmax, (*ctx.saved_tensors[:2], ctx.ignore_index)))
    def backward(ctx: Any, dloss: Tensor, _: Any) -> Any:  # type: ignore[override]
        return backward(dloss.contiguous(), *ctx.saved_tensors, ctx.ignore_index), None, None


def with_argmax(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    return _Stablemax.apply(logits.contiguous(), labels.contiguous(), ignore_index)


def stablemax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return with_argmax(logits, labels, ignore_index)[0]

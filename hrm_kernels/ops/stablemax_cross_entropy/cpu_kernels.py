"""The kernels of the CPU library: double precision inside, one double per token saved for the backward."""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher
from hrm_kernels.ops.stablemax_cross_entropy import reference


@launcher(
    "cpu_stablemax_forward(Tensor logits, Tensor labels, int ignore_index) -> (Tensor, Tensor, Tensor)",
    lambda logits, labels, ignore_index: (
        logits.new_empty(logits.shape[0], dtype=torch.float32),
        logits.new_empty(logits.shape[0], dtype=torch.float64),
        labels.new_empty(labels.shape),
    ),
)
def forward(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[N, V], [N]`` int64 -> loss, sum of s over all but the label, argmax, ``[N]`` each."""
    loss, others = (logits.new_empty(len(labels), dtype=dtype) for dtype in (torch.float32, torch.float64))
    argmax = torch.empty_like(labels)
    native.load("cpu").module.stablemax_forward(
        logits.detach(), labels, ignore_index, loss, others, argmax, torch.get_num_threads()
    )
    return loss, others, argmax


@launcher(
    "cpu_stablemax_backward(Tensor dloss, Tensor logits, Tensor labels, Tensor others, int ignore_index) -> Tensor",
    lambda dloss, logits, labels, others, ignore_index: logits.new_empty(logits.shape),
)
def backward(dloss: Tensor, logits: Tensor, labels: Tensor, others: Tensor, ignore_index: int) -> Tensor:
    dlogits = torch.empty_like(logits)
    native.load("cpu").module.stablemax_backward(
        dloss.detach(), logits.detach(), labels, ignore_index, others, dlogits, torch.get_num_threads()
    )
    return dlogits


class _Stablemax(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        loss, others, argmax = forward(logits, labels, ignore_index)
        ctx.save_for_backward(logits, labels, others)
        ctx.ignore_index = ignore_index
        ctx.mark_non_differentiable(argmax)
        return loss, argmax

    @staticmethod
    @first_order(lambda ctx: (reference.with_argmax, (*ctx.saved_tensors[:2], ctx.ignore_index)))
    def backward(ctx: Any, dloss: Tensor, _: Any) -> Any:  # type: ignore[override]
        return backward(dloss.contiguous(), *ctx.saved_tensors, ctx.ignore_index), None, None


def with_argmax(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    flat = logits.contiguous().view(-1, logits.shape[-1])
    loss, argmax = _Stablemax.apply(flat, labels.long().contiguous().view(-1), ignore_index)
    return loss.view(labels.shape), argmax.view(labels.shape)


def stablemax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return with_argmax(logits, labels, ignore_index)[0]

"""The step of :class:`hrm_kernels.optim.SparseSignSGD` on one table."""

import torch

from hrm_kernels.backends import Backend, Op, triton_cannot_run
from hrm_kernels.ops.sparse_sign_sgd import cpu_kernels, cuda_kernels, reference
from hrm_kernels.ops.sparse_sign_sgd.spec import SPEC
from hrm_kernels.tuning.table import cuda_is_unproven


def _triton(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> None:
    from hrm_kernels.ops.sparse_sign_sgd import triton_kernels

    triton_kernels.step(weights, ids.contiguous(), grads.contiguous(), lr, weight_decay)


def _triton_unsupported(weights: torch.Tensor, *arguments: object) -> str | None:
    reason = triton_cannot_run(weights)
    return reason if reason or weights.is_contiguous() else "the weights are not contiguous"


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.sparse_sign_sgd),
        "triton": Backend(_triton, _triton_unsupported),
        "cuda": Backend(cuda_kernels.step, cuda_kernels.unsupported, cuda_is_unproven("sparse_sign_sgd")),
        "cpu": Backend(cpu_kernels.step, cpu_kernels.unsupported),
    },
)


@_op.public
def sparse_sign_sgd(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> None:
    """For each identifier that occurs, once: ``w = w * (1 - lr * weight_decay) - lr * sign(sum of its gradients)``.

    Args:
        weights: ``[E, D]``, changed in place; only the rows of ``ids`` are read and written.
        ids: ``[N]`` int32 or int64, below E, in any order; they may repeat.
        grads: ``[N, D]``, one row for each of ``ids``.
        lr: a number or a scalar tensor.
        weight_decay: decoupled weight decay.
    """
    _op(weights, ids, grads, lr, weight_decay)

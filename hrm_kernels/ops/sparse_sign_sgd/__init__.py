"""The step of :class:`hrm_kernels.optim.SparseSignSGD` on one table."""

import torch

from hrm_kernels.backends import Backend, Op, triton_cannot_run
from hrm_kernels.checks import check_shape, check_tensor
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
        ids: ``[N]`` int32 or int64, from 0 to E - 1, in any order; they may repeat. On a GPU others are skipped,
            because an error would have to wait for the device; the look-up has reported them before.
        grads: ``[N, D]``, one row for each of ``ids``.
        lr: a number or a scalar tensor.
        weight_decay: decoupled weight decay.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.
        IndexError: on a CPU, an identifier is not a row of the table; nothing was changed.
    """
    _check(weights, ids, grads)
    _op(weights, ids, grads, lr, weight_decay)


def _check(weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor) -> None:
    SPEC.check(weights)
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int32, torch.int64):
        came = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise TypeError(f"{SPEC.name}: ids is {came}, expected an int32 or int64 tensor; convert it with .long()")
    check_tensor(SPEC.name, "grads", grads)
    check_shape(SPEC.name, "ids", ids, (None,), "[N]")
    check_shape(SPEC.name, "grads", grads, (len(ids), weights.shape[1]), "[N, D]")
    for name, tensor in (("ids", ids), ("grads", grads)):
        if tensor.device != weights.device:
            raise ValueError(
                f"{SPEC.name}: {name} is on {tensor.device}, expected {weights.device} as weights; move one of them"
            )

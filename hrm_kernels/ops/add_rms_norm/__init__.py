from typing import Any

import torch

from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_eps
from hrm_kernels.ops.add_rms_norm import cpu_kernels, reference
from hrm_kernels.ops.add_rms_norm.spec import SPEC


def _again(ctx: Any) -> tuple[Any, tuple[Any, ...]]:
    """The forward as a function of u and of a residual of 0: their gradients are those of x and residual."""
    u, _ = ctx.saved_tensors

    def function(u: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.add_rms_norm(u, zero, ctx.eps), u + zero

    return function, (u, torch.zeros_like(u).requires_grad_())


class _Triton(torch.autograd.Function):
    """``apply(x, residual, eps, save) -> (out, u)``: u = x + residual, so that second-order gradients reach it."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor, eps: float, save: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from hrm_kernels.ops.add_rms_norm import triton_kernels

        out, u, rstd = triton_kernels.forward(x, residual, eps, save)
        ctx.save_for_backward(u, rstd)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return out, u

    @staticmethod
    @first_order(_again)
    def backward(ctx: Any, dout: torch.Tensor | None, du: torch.Tensor | None) -> Any:  # type: ignore[override]
        from hrm_kernels.ops.add_rms_norm import triton_kernels

        if dout is not None:
            through_norm = triton_kernels.backward(dout.contiguous(), *ctx.saved_tensors)
            du = through_norm if du is None else du + through_norm
        return du, du, None, None


def _triton(x: torch.Tensor, residual: torch.Tensor, eps: float) -> torch.Tensor:
    save = torch.is_grad_enabled() and (x.requires_grad or residual.requires_grad)
    return _Triton.apply(x.contiguous(), residual.contiguous(), eps, save)[0]


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.add_rms_norm),
        "triton": Backend(_triton, lambda x, residual, eps: triton_cannot_run(x)),
        "cpu": Backend(cpu_kernels.add_rms_norm, lambda x, residual, eps: cpu_cannot_run(x)),
    },
)


@_op.public
def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """``rms_norm(x + residual)``, RMSNorm without a weight: the post-norm of a block.

    The sum is rounded to the dtype first, the norm is computed in float32:
    ``u = x + residual``, ``u * rsqrt(mean(u²) + eps)``. Under ``torch.autocast`` both are
    converted to the wider of the two dtypes, as for a sum in PyTorch.

    Args:
        x, residual: ``[..., D]``, float32, bfloat16 or float16, the same shape.
        eps: added to the mean square.

    Returns:
        ``[..., D]`` in the dtype of x.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: HRM (arXiv 2506.21734), section 2; RMSNorm, arXiv 1910.07467.
    """
    x, residual = _op.under_autocast(x, residual)
    SPEC.check(x, residual)
    check_eps(SPEC.name, eps)
    return _op(x, residual, eps)

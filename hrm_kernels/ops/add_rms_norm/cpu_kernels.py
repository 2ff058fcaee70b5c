"""The kernels of the CPU library: forward saves one float per row, backward reads x and residual again."""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher, rows
from hrm_kernels.ops.add_rms_norm import reference


@launcher(
    "cpu_add_rms_norm_forward(Tensor x, Tensor residual, float eps) -> (Tensor, Tensor)",
    lambda x, residual, eps: (x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)),
)
def forward(x: Tensor, residual: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``out [..., D]`` and ``1 / rms [...]``, contiguous."""
    out, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)
    native.load("cpu").module.add_rms_norm_forward(
        rows(x), rows(residual), eps, rows(out), rstd.view(-1), torch.get_num_threads()
    )
    return out, rstd


@launcher(
    "cpu_add_rms_norm_backward(Tensor dout, Tensor x, Tensor residual, Tensor rstd) -> Tensor",
    lambda dout, x, residual, rstd: dout.new_empty(dout.shape),
)
def backward(dout: Tensor, x: Tensor, residual: Tensor, rstd: Tensor) -> Tensor:
    du = dout.new_empty(dout.shape)
    native.load("cpu").module.add_rms_norm_backward(
        rows(dout), rows(x), rows(residual), rstd.view(-1), rows(du), torch.get_num_threads()
    )
    return du


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        out, rstd = forward(x, residual, eps)
        ctx.save_for_backward(x, residual, rstd)
        ctx.eps = eps
        return out

    @staticmethod
    @first_order(lambda ctx: (reference.add_rms_norm, (*ctx.saved_tensors[:2], ctx.eps)))
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        du = backward(dout, *ctx.saved_tensors)
        return du, du, None


def add_rms_norm(x: Tensor, residual: Tensor, eps: float) -> Tensor:
    if residual is x and torch.compiler.is_compiling():  # torch.compile refuses the same tensor twice
        residual = x.view_as(x)
    if torch.is_grad_enabled() and (x.requires_grad or residual.requires_grad):
        return _AddRMSNorm.apply(x, residual, eps)
    return forward(x, residual, eps)[0]

"""Token mixing on the CPU library: one call each way. Only x is saved; the backward computes the rest again."""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher
from hrm_kernels.ops.token_mixing import reference


@launcher(
    "cpu_token_mixing_forward(Tensor x, Tensor gate_up, Tensor down, float eps) -> Tensor",
    lambda x, gate_up, down, eps: x.new_empty(x.shape),
)
def forward(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """``[B, S, D]`` -> ``[B, S, D]``, contiguous."""
    out = torch.empty_like(x)
    native.load("cpu").module.token_mixing_forward(
        x.detach(), gate_up.detach(), down.detach(), eps, out, torch.get_num_threads()
    )
    return out


@launcher(
    "cpu_token_mixing_backward(Tensor dout, Tensor x, Tensor gate_up, Tensor down, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    lambda dout, x, gate_up, down, eps: tuple(one.new_empty(one.shape) for one in (x, gate_up, down)),
)
def backward(dout: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate_up and down."""
    make = torch.empty_like if x.shape[0] else torch.zeros_like  # without rows the kernel writes nothing
    dx, dgate_up, ddown = make(x), make(gate_up), make(down)
    native.load("cpu").module.token_mixing_backward(
        dout.detach(),
        x.detach(),
        gate_up.detach(),
        down.detach(),
        eps,
        dx,
        dgate_up,
        ddown,
        torch.get_num_threads(),
    )
    return dx, dgate_up, ddown


class _TokenMixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, gate_up, down)
        ctx.eps = eps
        return forward(x, gate_up, down, eps)

    @staticmethod
    @first_order(lambda ctx: (reference.token_mixing, (*ctx.saved_tensors, ctx.eps)))
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        return *backward(dout.contiguous(), *ctx.saved_tensors, ctx.eps), None


def token_mixing(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """``[B, S, D]`` -> ``[B, S, D]``."""
    if x.shape[1] == 0:  # nothing to compute
        return reference.token_mixing(x, gate_up, down, eps)
    return _TokenMixing.apply(x.contiguous(), gate_up.contiguous(), down.contiguous(), eps)

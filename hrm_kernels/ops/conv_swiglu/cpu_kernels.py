"""The kernels of the CPU library: one pass each way. Nothing but the inputs is saved; the backward computes y again."""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher
from hrm_kernels.ops.conv_swiglu import reference


@launcher(
    "cpu_conv_swiglu_forward(Tensor gate_up, Tensor weight, Tensor bias) -> Tensor",
    lambda gate_up, weight, bias: gate_up.new_empty(*gate_up.shape[:2], bias.shape[0]),
)
def forward(gate_up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``[B, S, 2 I] -> [B, S, I]``"""
    out = gate_up.new_empty(*gate_up.shape[:2], bias.shape[0])
    native.load("cpu").module.conv_swiglu_forward(
        gate_up.detach(), weight.detach(), bias.detach(), out, torch.get_num_threads()
    )
    return out


@launcher(
    "cpu_conv_swiglu_backward(Tensor dout, Tensor gate_up, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)",
    lambda dout, gate_up, weight, bias: tuple(one.new_empty(one.shape) for one in (gate_up, weight, bias)),
)
def backward(dout: Tensor, gate_up: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate_up, weight and bias."""
    make = torch.empty_like if dout.numel() else torch.zeros_like  # without positions the kernel writes nothing
    dgate_up, dweight, dbias = make(gate_up), make(weight), make(bias)
    native.load("cpu").module.conv_swiglu_backward(
        dout.detach(),
        gate_up.detach(),
        weight.detach(),
        bias.detach(),
        dgate_up,
        dweight,
        dbias,
        torch.get_num_threads(),
    )
    return dgate_up, dweight, dbias


class ConvSwiGLU(torch.autograd.Function):
    """``apply(gate_up [B, S, 2 I], weight, bias) -> [B, S, I]``, of contiguous tensors."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate_up, weight, bias)
        return forward(gate_up, weight, bias)

    @staticmethod
    @first_order(lambda ctx: (reference.conv_swiglu, ctx.saved_tensors))
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        return backward(dout.contiguous(), *ctx.saved_tensors)

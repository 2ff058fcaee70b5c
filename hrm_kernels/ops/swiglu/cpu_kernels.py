from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher, rows
from hrm_kernels.ops.swiglu import reference


@launcher(
    "cpu_swiglu_forward(Tensor gate_up) -> Tensor",
    lambda gate_up: gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2),
)
def forward(gate_up: Tensor) -> Tensor:
    """``[..., 2 I] -> [..., I]``, contiguous."""
    out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    native.load("cpu").module.swiglu_forward(rows(gate_up), rows(out), torch.get_num_threads())
    return out


@launcher(
    "cpu_swiglu_backward(Tensor dout, Tensor gate_up) -> Tensor",
    lambda dout, gate_up: gate_up.new_empty(gate_up.shape),
)
def backward(dout: Tensor, gate_up: Tensor) -> Tensor:
    dgate_up = gate_up.new_empty(gate_up.shape)
    native.load("cpu").module.swiglu_backward(rows(dout), rows(gate_up), rows(dgate_up), torch.get_num_threads())
    return dgate_up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate_up)
        return forward(gate_up)

    @staticmethod
    @first_order(lambda ctx: (reference.swiglu, ctx.saved_tensors))
    def backward(ctx: Any, dout: Tensor) -> Tensor:  # type: ignore[override]
        return backward(dout, *ctx.saved_tensors)


def swiglu(gate_up: Tensor) -> Tensor:
    if torch.is_grad_enabled() and gate_up.requires_grad:
        return _SwiGLU.apply(gate_up)
    return forward(gate_up)

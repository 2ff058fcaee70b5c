"""The product of the CPU library: each row is independent of the others. Gradients are PyTorch's products.

In bfloat16 these are products of float32, rounded once, where PyTorch has no instructions for bfloat16.
"""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native, packing
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher, rows
from hrm_kernels.instruction_sets import pytorch_lacks_bfloat16
from hrm_kernels.ops.linear import reference
from hrm_kernels.recycling import empty

FEW_ROWS = 96
"""Up to this number of rows, packing all weights or comparing their checksum takes longer than it saves."""


def _pack(weight: Tensor) -> Tensor:
    module = native.load("cpu").module
    packed = empty(module.linear_packed_size(*weight.shape, weight.dtype is torch.bfloat16))
    module.pack_linear(weight.detach(), packed, torch.get_num_threads())
    return packed


@launcher(
    "cpu_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]),
)
def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[..., in]`` -> ``[..., out]``, contiguous."""
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    module, threads = native.load("cpu").module, torch.get_num_threads()
    inputs, outputs = rows(x), rows(out)
    bias = None if bias is None else bias.detach().contiguous()
    if len(inputs) <= FEW_ROWS and not packing.is_kept([weight]):
        module.linear_unpacked(inputs, rows(weight), bias, outputs, threads)
    else:
        packed = packing.packed([weight], "linear", lambda contiguous: _pack(contiguous[0]))
        module.linear(inputs, packed, bias, outputs, threads)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight, bias)
        return forward(x, weight, bias)

    @staticmethod
    @first_order(lambda ctx: (reference.linear, ctx.saved_tensors))
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, weight, _ = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        dtype = dout.dtype
        wide = torch.float32 if dtype is torch.bfloat16 and pytorch_lacks_bfloat16() else dtype
        dy = dout.reshape(-1, dout.shape[-1]).to(wide)
        return (
            (dy @ weight.to(wide)).to(dtype).view(x.shape) if of_x else None,
            (dy.t() @ x.reshape(-1, x.shape[-1]).to(wide)).to(dtype) if of_weight else None,
            dy.sum(0).to(dtype) if of_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``[..., in]`` -> ``[..., out]``."""
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return forward(x, weight, bias)

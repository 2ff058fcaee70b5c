"""Linear layers of modules of other projects, computed from their parameters."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_kernels.autodiff import first_order
from hrm_kernels.casts import cast
from hrm_kernels.instruction_sets import pytorch_lacks_bfloat16
from hrm_kernels.ops.linear import linear

_FEW_ROWS = 2  # up to this number PyTorch's products of bfloat16 are the faster ones on any CPU


def is_slow_in_pytorch(x: Tensor) -> bool:
    """Whether products of ``x [..., in]`` are much faster in the CPU library."""
    if x.dtype is not torch.bfloat16 or x.device.type != "cpu" or x.numel() <= _FEW_ROWS * x.shape[-1]:
        return False
    return pytorch_lacks_bfloat16()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, by the CPU library where that is much faster."""
    return linear(x, weight, bias) if is_slow_in_pytorch(x) else F.linear(x, weight, bias)


def project(x: Tensor, layer: Any) -> Tensor:
    """``layer(x)`` of a linear layer, its parameters converted to the dtype of ``x [..., in]``."""
    return product(x, *_parameters(layer, x.dtype))


def project_both(x: Tensor, first: Any, second: Any) -> Tensor:
    """``[first(x) | second(x)]``, in one tensor ``[..., out + out]``. The weights are not copied."""
    parameters = *_parameters(first, x.dtype), *_parameters(second, x.dtype)
    # the CPU library writes whole rows; torch.compile lets products write into a part of the result by itself
    if torch.compiler.is_compiling() or x.dtype is torch.bfloat16 and x.device.type == "cpu":
        return torch.cat([product(x, *parameters[:2]), product(x, *parameters[2:])], -1)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, *parameters)):
        return _Both.apply(x, *parameters)
    return _both(x, *parameters)


def _parameters(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    bias = layer._parameters.get("bias")
    return cast(layer.weight, dtype), None if bias is None else cast(bias, dtype)  # type: ignore[arg-type]


def _both(x: Tensor, first: Tensor, first_bias: Tensor | None, second: Tensor, second_bias: Tensor | None) -> Tensor:
    """Two products, each written into its half of the result."""
    out = x.new_empty(*x.shape[:-1], len(first) + len(second))
    rows = x.reshape(-1, x.shape[-1])
    halves = out.view(-1, out.shape[-1]).split([len(first), len(second)], -1)
    for weight, bias, half in zip((first, second), (first_bias, second_bias), halves):
        if bias is None:
            torch.mm(rows, weight.t(), out=half)
        else:
            torch.addmm(bias, rows, weight.t(), out=half)
    return out


def _concatenated(
    x: Tensor, first: Tensor, first_bias: Tensor | None, second: Tensor, second_bias: Tensor | None
) -> Tensor:
    return torch.cat([F.linear(x, first, first_bias), F.linear(x, second, second_bias)], -1)


class _Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Any) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, *parameters)
        with torch.no_grad():
            return _both(x.detach(), *parameters)

    @staticmethod
    @first_order(lambda ctx: (_concatenated, ctx.saved_tensors))
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, first, _, second, _ = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        halves = dout.reshape(-1, dout.shape[-1]).split([len(first), len(second)], -1)
        needs = ctx.needs_input_grad
        dx = None
        if needs[0]:
            dx = torch.addmm(halves[0] @ first, halves[1], second).view(x.shape)
        gradients = []
        for half, of_weight, of_bias in zip(halves, needs[1::2], needs[2::2]):
            gradients += [half.t() @ rows if of_weight else None, half.sum(0) if of_bias else None]
        return dx, *gradients

"""Products with weights in 8 bits, for updates without gradients: the definition, in plain PyTorch.

Each row of activations and each row of weights (an output channel) is scaled to the range of the format and rounded.
FP8 products are summed in float32, int8 products exactly; then both scales are multiplied in. Attention, SwiGLU, norms
and mixing along positions are as in :func:`hrm_kernels.transformer_block`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hrm_kernels.autodiff import traced_as_constant
from hrm_kernels.damping import Damping, damp
from hrm_kernels.ops.add_rms_norm.reference import add_rms_norm
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.rope_attention.reference import rope_attention
from hrm_kernels.ops.swiglu.reference import swiglu
from hrm_kernels.ops.token_mixing.reference import token_mixing
from hrm_kernels.ops.transformer_block.weights import Layer, PreNormBlockWeights


class Format(NamedTuple):
    """A format of 8 bits.

    Attributes:
        dtype: of the values.
        largest: the largest value that rows are scaled to.
    """

    dtype: torch.dtype
    largest: float


FORMATS = {"fp8": Format(torch.float8_e4m3fn, 448.0), "int8": Format(torch.int8, 127.0)}
CHOICES = (*FORMATS, "auto")

LEAST = 2.0**-100
"""Rows of smaller values are scaled as if this were their largest: the inverse of their scale would overflow."""


class Quantized(NamedTuple):
    """A matrix in 8 bits: ``values * scales[:, None]``.

    Attributes:
        values: ``[M, K]`` in a format's dtype.
        scales: ``[M]`` float32.
    """

    values: torch.Tensor
    scales: torch.Tensor


def quantized(x: torch.Tensor, name: str) -> Quantized:
    """``x [M, K]`` in a format of :data:`FORMATS`. The scale of a row with a NaN or an infinite value is infinite."""
    dtype, largest = FORMATS[name]
    wide = x.float()
    size = torch.where(wide.isfinite(), wide.abs(), torch.inf)
    most = size.amax(1) if x.shape[1] else size.new_zeros(x.shape[0])
    scales = most.clamp(min=LEAST) * (1 / largest)
    scaled = wide * (1 / scales)[:, None]
    return Quantized((scaled if dtype.is_floating_point else scaled.round()).to(dtype), scales)


def product(x: torch.Tensor, weight: torch.Tensor, name: str) -> torch.Tensor:
    """``x [..., K] @ weight [N, K].T`` in 8 bits, in the dtype of x."""
    left, right = quantized(x.reshape(-1, x.shape[-1]), name), quantized(weight, name)
    exact = torch.float32
    if name == "int8" and x.shape[-1] * 127**2 >= 2**24:  # else float32 adds the integers exactly
        exact = torch.float64
    sums = F.linear(left.values.to(exact), right.values.to(exact)).float()
    return (sums * (left.scales[:, None] * right.scales)).to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def transformer_block(x: torch.Tensor, weights: Layer, heads: Heads, eps: float, name: str) -> torch.Tensor:
    """:func:`hrm_kernels.transformer_block` with products in 8 bits."""
    first, second, gate_up, down, *_ = weights
    if heads.mixing:
        x = token_mixing(x, first, second, eps)
    else:
        x = add_rms_norm(x, product(rope_attention(product(x, first, name), heads), second, name), eps)
    return add_rms_norm(x, product(swiglu(product(x, gate_up, name)), down, name), eps)


def reasoning_module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    heads: Heads,
    eps: float,
    damping: Damping | None,
    name: str,
) -> torch.Tensor:
    """:func:`hrm_kernels.reasoning_module` with products in 8 bits."""
    x = z + injection
    for weights in layers:
        x = transformer_block(x, weights, heads, eps, name)
    return damp(z, x, damping)


def check(op: str, choice: str | None, layers: Sequence[Layer]) -> None:
    """
    Raises:
        ValueError: ``choice`` is not None and not in :data:`CHOICES`, or is for blocks that have no 8-bit products.
    """
    if choice is None:
        return
    if choice not in CHOICES:
        raise ValueError(f"{op}: eight_bit is {choice!r}, expected None or one of {', '.join(CHOICES)}")
    if isinstance(layers[0], PreNormBlockWeights):
        raise ValueError(f"{op}: eight_bit is {choice!r}, and the blocks are pre-norm blocks; leave eight_bit out")


def format_for(choice: str, device: torch.device) -> str:
    """The format of ``choice``; "auto" is FP8 where the matrix units multiply it, else int8."""
    if choice != "auto":
        return choice
    return "fp8" if fp8_is_missing(device) is None else "int8"


def fp8_is_missing(device: torch.device) -> str | None:
    """Why the GPU does not multiply FP8; None where it does, and for devices that are not GPUs."""
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return "FP8 is for NVIDIA GPUs; use eight_bit='int8'"
    capability = _capability(device.index or 0)
    if capability < (8, 9):
        return f"FP8 needs compute capability 8.9, this GPU has {capability[0]}.{capability[1]}; use eight_bit='int8'"
    return None


@traced_as_constant
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)

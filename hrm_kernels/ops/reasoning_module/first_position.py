"""The update of a module when only the first position of the result is needed, as for the Q values."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hrm_kernels.autodiff import attention
from hrm_kernels.ops.add_rms_norm import add_rms_norm
from hrm_kernels.ops.linear import linear
from hrm_kernels.ops.reasoning_module import reasoning_module
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.rope_attention.reference import apply_rope
from hrm_kernels.ops.swiglu import swiglu
from hrm_kernels.ops.token_mixing import token_mixing
from hrm_kernels.ops.transformer_block.weights import BlockWeights, Layer, PreNormBlockWeights


def first_position(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``reasoning_module(z, injection, layers, ...)[:, 0]``, without the work of the last block for other positions.

    The last block computes keys and values of all positions, and everything else for the first: about a sixth of its
    arithmetic for S = 82, on a GPU a quarter (:func:`on_gpu`). One that mixes positions does so for all, and computes
    its SwiGLU for the first. The function calls other ops, so it runs on their backends and differentiates.

    Args: those of :func:`hrm_kernels.reasoning_module`.

    Returns:
        ``[B, D]``.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.
    """
    *before, last = layers
    if isinstance(last, PreNormBlockWeights):
        return reasoning_module(z, injection, layers, cos, sin, num_heads, eps)[:, 0]
    x = reasoning_module(z, injection, before, cos, sin, num_heads, eps) if before else z + injection
    if isinstance(last, BlockWeights):
        first = _attended(x, last, cos, sin, num_heads, eps)
    else:
        first = token_mixing(x, last.mix_gate_up, last.mix_down, eps)[:, 0].contiguous()
    return add_rms_norm(first, _product(swiglu(_product(first, last.gate_up)), last.down), eps)


def _attended(
    x: torch.Tensor,
    last: BlockWeights,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
) -> torch.Tensor:
    """The first position after the attention of a block and its norm."""
    if on_gpu(x):
        attended = rope_attention(_product(x, last.qkv), cos, sin, num_heads)[:, 0]
        return add_rms_norm(x[:, 0], _product(attended, last.o), eps)
    batch, positions, _ = x.shape
    width = last.qkv.shape[0] // 3  # H d
    head = (num_heads, width // num_heads)
    first = x[:, 0]
    q = _product(first, last.qkv[:width]).view(batch, 1, *head)
    k, v = _product(x, last.qkv[width:]).view(batch, positions, 2, *head).unbind(2)
    if cos is not None and sin is not None:
        q, k = apply_rope(q, cos[:1, None], sin[:1, None]), apply_rope(k, cos[:positions, None], sin[:positions, None])
    attended = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return add_rms_norm(first, _product(attended.reshape(batch, width), last.o), eps)


def on_gpu(x: torch.Tensor) -> bool:
    """Whether attention at all positions costs less than plain PyTorch's at the first.

    On a GPU PyTorch turns the keys in several launches over float32 tensors, which move 0.8 GB for 384 rows of 82
    positions. The queries of the other positions and attention move a fifth of that.
    """
    return x.is_cuda


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` for weights that are used once: packing them for the ``linear`` op does not pay in float32.

    In bfloat16 it does: on a CPU without bfloat16 instructions PyTorch's product takes several times as long.
    """
    return linear(x, weight) if x.dtype is torch.bfloat16 else F.linear(x, weight)

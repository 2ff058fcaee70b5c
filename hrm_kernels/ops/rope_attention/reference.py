from typing import Any

import torch

from hrm_kernels.autodiff import attention
from hrm_kernels.ops.rope_attention.heads import Heads


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + head_dim / 2) of ``x [B, S, H, d]`` by the angles of ``cos, sin [S, 1, d]``."""
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def again(ctx: Any) -> tuple[Any, tuple[Any, ...]]:
    """For :func:`hrm_kernels.autodiff.first_order`, of a Function that has saved qkv, cos and sin first."""
    qkv, cos, sin = ctx.saved_tensors[:3]
    return lambda qkv, *heads: rope_attention(qkv, Heads(*heads)), (qkv, cos, sin, ctx.num_heads)


def rope_attention(qkv: torch.Tensor, heads: Heads) -> torch.Tensor:
    cos, sin, num_heads = heads
    batch, positions, columns = qkv.shape
    q, k, v = qkv.view(batch, positions, 3, num_heads, columns // (3 * num_heads)).unbind(2)
    if cos is not None and sin is not None:
        cos, sin = cos[:positions, None], sin[:positions, None]
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).reshape(batch, positions, columns // 3)

import torch

from hrm_kernels.autodiff import attention


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + head_dim / 2) of ``x [B, S, H, d]`` by the angles of ``cos, sin [S, 1, d]``."""
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def rope_attention(
    qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, num_heads: int
) -> torch.Tensor:
    batch, positions, columns = qkv.shape
    q, k, v = qkv.view(batch, positions, 3, num_heads, columns // (3 * num_heads)).unbind(2)
    if cos is not None and sin is not None:
        cos, sin = cos[:positions, None], sin[:positions, None]
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).reshape(batch, positions, columns // 3)

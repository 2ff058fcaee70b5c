from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from hrm_kernels.autodiff import in_transform
from hrm_kernels.ops.add_rms_norm.reference import add_rms_norm
from hrm_kernels.ops.rope_attention.reference import rope_attention
from hrm_kernels.ops.swiglu.reference import swiglu


def transformer_block(
    x: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float = 1e-5,
    recompute: bool = False,
) -> torch.Tensor:
    if recompute and torch.is_grad_enabled() and not in_transform():  # which cannot save memory
        return checkpoint(transformer_block, x, weights, cos, sin, num_heads, eps, use_reentrant=False)
    qkv, o, gate_up, down = weights
    x = add_rms_norm(x, F.linear(rope_attention(F.linear(x, qkv), cos, sin, num_heads), o), eps)
    return add_rms_norm(x, F.linear(swiglu(F.linear(x, gate_up)), down), eps)


def run_blocks(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
) -> torch.Tensor:
    """Blocks in turn, of a flat list of their matrices."""
    for first in range(0, len(weights), 4):
        qkv, o, gate_up, down = weights[first : first + 4]
        x = transformer_block(x, (qkv, o, gate_up, down), cos, sin, num_heads, eps)
    return x

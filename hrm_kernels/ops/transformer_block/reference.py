from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from hrm_kernels.autodiff import in_transform
from hrm_kernels.ops.add_rms_norm.reference import add_rms_norm
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.rope_attention.reference import rope_attention
from hrm_kernels.ops.swiglu.reference import swiglu
from hrm_kernels.ops.token_mixing.reference import token_mixing
from hrm_kernels.ops.transformer_block.weights import Layer, PreNormBlockWeights, by_block


def transformer_block(
    x: torch.Tensor, weights: Layer, heads: Heads, eps: float, recompute: bool = False
) -> torch.Tensor:
    if recompute and torch.is_grad_enabled() and not in_transform():  # which cannot save memory
        return checkpoint(transformer_block, x, weights, heads, eps, use_reentrant=False)
    if isinstance(weights, PreNormBlockWeights):
        return pre_norm_block(x, weights, heads, eps)
    first, second, gate_up, down = weights
    if heads.mixing:
        x = token_mixing(x, first, second, eps)
    else:
        x = add_rms_norm(x, F.linear(rope_attention(F.linear(x, first), heads), second), eps)
    return add_rms_norm(x, F.linear(swiglu(F.linear(x, gate_up)), down), eps)


def pre_norm_block(x: torch.Tensor, weights: PreNormBlockWeights, heads: Heads, eps: float) -> torch.Tensor:
    qkv, o, gate_up, down, scales = weights
    keep, add, _, _ = scales
    x = keep * x + add * F.linear(rope_attention(F.linear(rms_norm(x, eps), qkv), heads), o)
    return keep * x + add * F.linear(swiglu(F.linear(rms_norm(x, eps), gate_up)), down)


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / rms(x)``, computed in float32 (float64 for such x)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def enter(z: torch.Tensor, injection: torch.Tensor, first: Layer) -> torch.Tensor:
    """What the first block of a module reads."""
    if not isinstance(first, PreNormBlockWeights):
        return z + injection
    _, _, start, inject = first.scales
    return start * z + inject * injection


def run_blocks(x: torch.Tensor, weights: Sequence[torch.Tensor], heads: Heads, eps: float) -> torch.Tensor:
    """Blocks in turn, of a flat list of their matrices."""
    for block in by_block(weights, heads.num_heads):
        x = transformer_block(x, block, heads, eps)
    return x

"""Pre-norm blocks by the ops of their parts, each on its own kernels; differentiable."""

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from hrm_kernels.autodiff import in_transform
from hrm_kernels.backends import keep_backend
from hrm_kernels.ops.linear import linear
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.swiglu import swiglu
from hrm_kernels.ops.transformer_block.reference import enter, rms_norm
from hrm_kernels.ops.transformer_block.weights import Layer, PreNormBlockWeights


def block(
    x: torch.Tensor, weights: PreNormBlockWeights, heads: Heads, eps: float, recompute: bool = False
) -> torch.Tensor:
    """``[B, S, D] -> [B, S, D]``"""
    if recompute and torch.is_grad_enabled() and not in_transform():
        return checkpoint(keep_backend(block), x, weights, heads, eps, use_reentrant=False)
    qkv, o, gate_up, down, scales = weights
    keep, add, _, _ = scales
    x = keep * x + add * linear(rope_attention(linear(rms_norm(x, eps), qkv), *heads), o)
    return keep * x + add * linear(swiglu(linear(rms_norm(x, eps), gate_up)), down)


def module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    heads: Heads,
    eps: float,
    recompute: bool = False,
) -> torch.Tensor:
    """All blocks in turn, from the scaled state and injection."""
    x = enter(z, injection, layers[0])
    for weights in layers:
        assert isinstance(weights, PreNormBlockWeights)
        x = block(x, weights, heads, eps, recompute)
    return x

"""Blocks that mix positions, with the Triton kernels of token mixing: both halves of a block are the same function."""

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from hrm_kernels.ops.token_mixing.triton_mixing import TokenMixing, token_mixing


def _block(x: torch.Tensor, weights: Sequence[torch.Tensor], eps: float) -> torch.Tensor:
    """``[B, S, D] -> [B, S, D]``: the positions of each channel, then the channels of each position."""
    mix_gate_up, mix_down, gate_up, down = weights
    x = token_mixing(x, mix_gate_up, mix_down, eps)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, gate_up, down))
    rows = x.reshape(-1, x.shape[2])
    return TokenMixing.apply(rows, gate_up.contiguous(), down.contiguous(), eps, save).view(x.shape)


def blocks(x: torch.Tensor, weights: Sequence[torch.Tensor], eps: float, recompute: bool) -> torch.Tensor:
    """``x [B, S, D]`` through all blocks; saves activations only if an argument needs a gradient."""
    for first in range(0, len(weights), 4):
        block = weights[first : first + 4]
        if recompute and torch.is_grad_enabled():
            x = checkpoint(_block, x, block, eps, use_reentrant=False)
        else:
            x = _block(x, block, eps)
    return x

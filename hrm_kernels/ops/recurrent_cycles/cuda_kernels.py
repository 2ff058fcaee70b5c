"""The cuda backend: all updates without gradients in one launch of csrc/cuda/recurrent_cycles.cu."""

from collections.abc import Sequence

import torch

from hrm_kernels.damping import Damping
from hrm_kernels.ops.reasoning_module.cuda_kernels import NO_DAMPING, cannot_run, update
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.weights import flat


def unsupported(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Sequence[torch.Tensor]],
    L_layers: Sequence[Sequence[torch.Tensor]],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    damping: Damping | None = None,
) -> str | None:
    if damping is not None:
        return NO_DAMPING
    return cannot_run(z_H, [H_layers, L_layers], heads)


def recurrent_cycles(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Sequence[torch.Tensor]],
    L_layers: Sequence[Sequence[torch.Tensor]],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    damping: None = None,
    eight_bit: None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if H_cycles * L_cycles == 1:
        return z_H, z_L
    new_H, new_L = update(z_H, z_L, x, flat(H_layers), flat(L_layers), heads, H_cycles, L_cycles, eps)
    return new_H if H_cycles > 1 else z_H, new_L

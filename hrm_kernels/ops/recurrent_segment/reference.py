from collections.abc import Sequence

import torch

from hrm_kernels.damping import Damping
from hrm_kernels.movement import move
from hrm_kernels.ops.recurrent_cycles.reference import by_module, run_cycles
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.weights import Layer


def recurrent_segment(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: torch.Tensor | None = None,
    damping: Damping | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    H_update, L_update = (by_module(layers, heads, eps) for layers in (H_layers, L_layers))
    ends = run_cycles(z_H, z_L, x, H_update, L_update, H_cycles, L_cycles, damping, complete=True)
    return move((z_H, z_L), ends, weight)

from collections.abc import Sequence

import torch

from hrm_kernels.damping import Damping
from hrm_kernels.ops.reasoning_module.reference import reasoning_module
from hrm_kernels.ops.recurrent_cycles.movement import move
from hrm_kernels.ops.recurrent_cycles.reference import run_cycles
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
    def H_update(z: torch.Tensor, injection: torch.Tensor, damping: Damping | None) -> torch.Tensor:
        return reasoning_module(z, injection, H_layers, heads, eps, damping=damping)

    def L_update(z: torch.Tensor, injection: torch.Tensor, damping: Damping | None) -> torch.Tensor:
        return reasoning_module(z, injection, L_layers, heads, eps, damping=damping)

    ends = run_cycles(z_H, z_L, x, H_update, L_update, H_cycles, L_cycles, damping, complete=True)
    return move((z_H, z_L), ends, weight)

from collections.abc import Sequence

import torch

from hrm_kernels.ops.reasoning_module.reference import reasoning_module


def recurrent_cycles(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]],
    L_layers: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    H_cycles: int,
    L_cycles: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        for h in range(H_cycles):
            last = h == H_cycles - 1
            injection = z_H + x
            for _ in range(L_cycles - 1 if last else L_cycles):
                z_L = reasoning_module(z_L, injection, L_layers, cos, sin, num_heads, eps)
            if not last:
                z_H = reasoning_module(z_H, z_L, H_layers, cos, sin, num_heads, eps)
    return z_H, z_L

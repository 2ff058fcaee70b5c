from collections.abc import Sequence

import torch

from hrm_kernels.ops.transformer_block.reference import transformer_block


def reasoning_module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float = 1e-5,
    recompute: bool = False,
) -> torch.Tensor:
    z = z + injection
    for weights in layers:
        z = transformer_block(z, weights, cos, sin, num_heads, eps, recompute)
    return z

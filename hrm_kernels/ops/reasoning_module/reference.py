from collections.abc import Sequence

import torch

from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.reference import transformer_block
from hrm_kernels.ops.transformer_block.weights import Layer


def reasoning_module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    heads: Heads,
    eps: float,
    recompute: bool = False,
) -> torch.Tensor:
    z = z + injection
    for weights in layers:
        z = transformer_block(z, weights, heads, eps, recompute)
    return z

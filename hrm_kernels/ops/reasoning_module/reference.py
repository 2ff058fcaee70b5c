from collections.abc import Sequence

import torch

from hrm_kernels.damping import Damping, damp
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.reference import enter, transformer_block
from hrm_kernels.ops.transformer_block.weights import Layer


def reasoning_module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    heads: Heads,
    eps: float,
    recompute: bool = False,
    damping: Damping | None = None,
) -> torch.Tensor:
    updated = enter(z, injection, layers[0])
    for weights in layers:
        updated = transformer_block(updated, weights, heads, eps, recompute)
    return damp(z, updated, damping)

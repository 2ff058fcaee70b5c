from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from hrm_kernels.ops.add_rms_norm.reference import add_rms_norm
from hrm_kernels.ops.conv_cycles.weights import ConvBlockWeights
from hrm_kernels.ops.conv_swiglu.reference import conv_swiglu
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.rope_attention.reference import rope_attention


def block(x: torch.Tensor, weights: ConvBlockWeights, heads: Heads, eps: float) -> torch.Tensor:
    qkv, o, gate_up, down, conv, conv_bias = weights
    x = add_rms_norm(x, F.linear(rope_attention(F.linear(x, qkv), heads), o), eps)
    return add_rms_norm(x, F.linear(conv_swiglu(F.linear(x, gate_up), conv, conv_bias), down), eps)


def conv_cycles(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[ConvBlockWeights],
    heads: Heads,
    cycles: int,
    eps: float,
) -> torch.Tensor:
    return run_cycles(z, injection, layers, cycles, lambda x, weights: block(x, weights, heads, eps))


def run_cycles(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[ConvBlockWeights],
    cycles: int,
    block: Callable[[torch.Tensor, ConvBlockWeights], torch.Tensor],
) -> torch.Tensor:
    """``cycles`` times all ``layers``, each computed by ``block``, over ``z + injection``."""
    for _ in range(cycles):
        z = z + injection
        for weights in layers:
            z = block(z, weights)
    return z

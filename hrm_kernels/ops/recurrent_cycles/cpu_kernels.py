"""All updates of a segment without gradients in one call, on the same states, weights and workspaces."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrm_kernels.backends import launcher
from hrm_kernels.ops.rope_attention.cpu_kernels import table
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.packing import pack


@launcher(
    "cpu_recurrent_cycles(Tensor z_H, Tensor z_L, Tensor x, Tensor[] H_weights, Tensor[] L_weights, Tensor? cos, "
    "Tensor? sin, int num_heads, int H_cycles, int L_cycles, float eps) -> (Tensor, Tensor)",
    lambda z_H, z_L, *rest: (z_H.new_empty(z_H.shape), z_L.new_empty(z_L.shape)),
    grouped=(5, Heads),
)
def run(
    z_H: Tensor,
    z_L: Tensor,
    x: Tensor,
    H_weights: Sequence[Tensor],
    L_weights: Sequence[Tensor],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    H, L = pack(H_weights, heads.num_heads), pack(L_weights, heads.num_heads)
    out_H, out_L = torch.empty_like(z_H), torch.empty_like(z_L)
    H.module.recurrent_cycles(
        z_H.detach(),
        z_L.detach(),
        x.detach(),
        H.forward,
        H.layers,
        L.forward,
        L.layers,
        table(heads.cos),
        table(heads.sin),
        out_H,
        out_L,
        *H.sizes(),
        H_cycles,
        L_cycles,
        eps,
        torch.get_num_threads(),
    )
    return out_H, out_L

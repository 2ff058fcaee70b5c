"""The updates of a segment in one call of the CPU library, which measures their change where it writes the states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrm_kernels.backends import launcher
from hrm_kernels.ops.rope_attention.cpu_kernels import table
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.packing import pack


@launcher(
    "cpu_recurrent_segment(bool complete, Tensor z_H, Tensor z_L, Tensor x, Tensor[] H_weights, Tensor[] L_weights, "
    "Tensor? cos, Tensor? sin, int num_heads, int H_cycles, int L_cycles, float eps, Tensor? weight, "
    "Tensor? row_weights, float noise_scale, Tensor? seeds, Tensor? steps) -> (Tensor, Tensor, Tensor)",
    lambda complete, z_H, z_L, *rest: (
        z_H.new_empty(z_H.shape),
        z_L.new_empty(z_L.shape),
        z_H.new_empty(z_H.shape[0], 2, dtype=torch.float32),
    ),
    grouped=(6, Heads),
)
def run(
    complete: bool,
    z_H: Tensor,
    z_L: Tensor,
    x: Tensor,
    H_weights: Sequence[Tensor],
    L_weights: Sequence[Tensor],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: Tensor | None,
    row_weights: Tensor | None,
    noise_scale: float,
    seeds: Tensor | None,
    steps: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new states and their change; the last four are the fields of a :class:`hrm_kernels.damping.Rows`.

    Without ``complete`` the last update of each state is left out, and the change is 0.
    """
    H, L = pack(H_weights, heads.num_heads), pack(L_weights, heads.num_heads)
    out_H, out_L = torch.empty_like(z_H), torch.empty_like(z_L)
    is_written = complete and z_H.numel()
    change = (torch.empty if is_written else torch.zeros)(z_H.shape[0], 2, dtype=torch.float32, device="cpu")
    H.module.recurrent_segment(
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
        change if complete else None,
        weight,
        *H.sizes(),
        H_cycles,
        L_cycles,
        eps,
        row_weights,
        noise_scale,
        seeds,
        steps,
        H.scales,
        L.scales,
        torch.get_num_threads(),
    )
    return out_H, out_L, change

"""All updates of a segment without gradients in one call, on the same states, weights and workspaces."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrm_kernels.backends import launcher
from hrm_kernels.ops.rope_attention.cpu_kernels import table
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.packing import pack

_SCHEMA = (
    "Tensor z_H, Tensor z_L, Tensor x, Tensor[] H_weights, Tensor[] L_weights, Tensor? cos, Tensor? sin, "
    "int num_heads, int H_cycles, int L_cycles, float eps"
)


@launcher(
    f"cpu_recurrent_cycles({_SCHEMA}) -> (Tensor, Tensor)",
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
    return _run("recurrent_cycles", z_H, z_L, x, H_weights, L_weights, heads, H_cycles, L_cycles, eps)


@launcher(
    f"cpu_damped_recurrent_cycles({_SCHEMA}, Tensor row_weights, float noise_scale, Tensor seeds, Tensor steps) "
    "-> (Tensor, Tensor)",
    lambda z_H, z_L, *rest: (z_H.new_empty(z_H.shape), z_L.new_empty(z_L.shape)),
    grouped=(5, Heads),
)
def run_damped(
    z_H: Tensor,
    z_L: Tensor,
    x: Tensor,
    H_weights: Sequence[Tensor],
    L_weights: Sequence[Tensor],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    *rows: Any,
) -> tuple[Tensor, Tensor]:
    """``rows`` are the fields of a :class:`hrm_kernels.damping.Rows`."""
    return _run("damped_recurrent_cycles", z_H, z_L, x, H_weights, L_weights, heads, H_cycles, L_cycles, eps, *rows)


def _run(
    kernel: str,
    z_H: Tensor,
    z_L: Tensor,
    x: Tensor,
    H_weights: Sequence[Tensor],
    L_weights: Sequence[Tensor],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    *rows: Any,
) -> tuple[Tensor, Tensor]:
    H, L = pack(H_weights, heads.num_heads), pack(L_weights, heads.num_heads)
    out_H, out_L = torch.empty_like(z_H), torch.empty_like(z_L)
    getattr(H.module, kernel)(
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
        *rows,
        torch.get_num_threads(),
    )
    return out_H, out_L

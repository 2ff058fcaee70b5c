"""All updates in one call of the CPU library, on the same state, weights and workspace."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrm_kernels import native, packing
from hrm_kernels.backends import launcher
from hrm_kernels.ops.rope_attention.cpu_kernels import table
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.recycling import empty


def _pack(weights: Sequence[Tensor], num_heads: int) -> Tensor:
    """Blocks of six weights each, packed now or before."""

    def make(contiguous: Sequence[Tensor]) -> Tensor:
        module, (dim, inner) = native.load("cpu").module, contiguous[3].shape
        head_dim = contiguous[0].shape[0] // (3 * num_heads)
        size = module.conv_packed_size(dim, num_heads, head_dim, inner, contiguous[3].dtype is torch.bfloat16)
        packed = empty(len(contiguous) // 6 * size)
        plain = [weight.detach().contiguous() for weight in contiguous]
        module.pack_conv_blocks(plain, num_heads, packed, torch.get_num_threads())
        return packed

    return packing.packed(weights, ("conv blocks", num_heads), make)


@launcher(
    "cpu_conv_cycles(Tensor z, Tensor injection, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "int cycles, float eps) -> Tensor",
    lambda z, *rest: z.new_empty(z.shape),
    grouped=(3, Heads),
)
def run(z: Tensor, injection: Tensor, weights: Sequence[Tensor], heads: Heads, cycles: int, eps: float) -> Tensor:
    """``[B, S, D]``, contiguous."""
    out = torch.empty_like(z)
    native.load("cpu").module.conv_cycles(
        z.detach(),
        injection.detach(),
        _pack(weights, heads.num_heads),
        len(weights) // 6,
        table(heads.cos),
        table(heads.sin),
        out,
        heads.num_heads,
        weights[0].shape[0] // (3 * heads.num_heads),
        weights[3].shape[1],
        cycles,
        eps,
        torch.get_num_threads(),
    )
    return out

"""The blocks of one module, packed for the CPU library."""

from collections.abc import Sequence

import torch

from hrm_kernels import native, packing
from hrm_kernels.ops.transformer_block.weights import PreNormBlockWeights, is_pre_norm
from hrm_kernels.recycling import empty


class Packed:
    """The blocks of one module, packed for the forward pass and, at the first backward, for gradients of inputs.

    Attributes:
        scales: of pre-norm blocks; None for others.
    """

    scales: torch.Tensor | None = None

    def __init__(self, weights: Sequence[torch.Tensor], num_heads: int) -> None:
        self.module = native.load("cpu").module
        self.num_heads, self.layers = num_heads, len(weights) // 4
        first, second, _, down = weights[:4]
        dim, self.inner = down.shape
        bfloat16 = down.dtype is torch.bfloat16
        if num_heads:
            self.width = first.shape[0] // (3 * num_heads)
            size = self.module.packed_size(dim, num_heads, self.width, self.inner, bfloat16)
        else:
            self.width = second.shape[1]
            size = self.module.mixing_packed_size(second.shape[0], dim, self.width, self.inner, bfloat16)
        self.size = self.layers * size
        self.forward = self._pack(weights, False)
        self._backward: torch.Tensor | None = None

    def _pack(self, weights: Sequence[torch.Tensor], backward: bool) -> torch.Tensor:
        packed = empty(self.size)
        plain = [weight.detach().contiguous() for weight in weights]
        self.module.pack_blocks(plain, self.num_heads, backward, packed, torch.get_num_threads())
        return packed

    def backward(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The form that the backward reads; ``weights`` are those of the constructor."""
        if self._backward is None:
            self._backward = self._pack(weights, True)
        return self._backward

    def sizes(self) -> tuple[int, int, int]:
        """num_heads, the width of a head, I; or for blocks that mix positions 0, T, I."""
        return self.num_heads, self.width, self.inner


class PackedPreNorm(Packed):
    """Pre-norm blocks packed for the forward pass; their `add` scales the rows of ``o`` and ``down``.

    Attributes:
        scales: ``[3 layers, D]`` float32: keep, start and inject of each block (csrc/cpu/kernels.h).
    """

    def __init__(self, weights: Sequence[torch.Tensor], num_heads: int) -> None:
        blocks = [PreNormBlockWeights(*weights[first : first + 5]) for first in range(0, len(weights), 5)]
        matrices: list[torch.Tensor] = []
        for qkv, o, gate_up, down, scales in blocks:
            add = scales[1].detach().float().unsqueeze(1)
            scaled = [(add * one.detach().float()).to(one.dtype) for one in (o, down)]
            matrices += [qkv, scaled[0], gate_up, scaled[1]]
        super().__init__(matrices, num_heads)
        kept = [scales.detach().float()[[0, 2, 3]] for *_, scales in blocks]
        self.scales = torch.cat(kept)


def pack(weights: Sequence[torch.Tensor], num_heads: int) -> Packed:
    """The weights of each block in turn, packed now or before; see :mod:`hrm_kernels.packing`."""
    if is_pre_norm(weights):
        return packing.packed(weights, ("pre-norm blocks", num_heads), lambda own: PackedPreNorm(own, num_heads))
    return packing.packed(weights, ("blocks", num_heads), lambda contiguous: Packed(contiguous, num_heads))

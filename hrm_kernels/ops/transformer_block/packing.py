"""The blocks of one module, packed for the CPU library."""

from collections.abc import Sequence

import torch

from hrm_kernels import native, packing
from hrm_kernels.recycling import empty


class Packed:
    """The blocks of one module, packed for the forward pass and, at the first backward, for gradients of inputs."""

    def __init__(self, weights: Sequence[torch.Tensor], num_heads: int) -> None:
        self.module = native.load("cpu").module
        self.num_heads, self.layers = num_heads, len(weights) // 4
        qkv, down = weights[0], weights[3]
        self.head_dim, self.inner = qkv.shape[0] // (3 * num_heads), down.shape[1]
        sizes = qkv.shape[1], num_heads, self.head_dim, self.inner
        self.size = self.layers * self.module.packed_size(*sizes, qkv.dtype is torch.bfloat16)
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
        return self.num_heads, self.head_dim, self.inner


def pack(weights: Sequence[torch.Tensor], num_heads: int) -> Packed:
    """The four matrices of each block in turn, packed now or before; see :mod:`hrm_kernels.packing`."""
    return packing.packed(weights, ("blocks", num_heads), lambda contiguous: Packed(contiguous, num_heads))

"""Weights in the order in which the CPU library's products read them: packed once, and again when they change."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from hrm_kernels import native
from hrm_kernels.recycling import empty


class Packed:
    """The blocks of one module, packed for forward and, once a backward asks for it, for the gradients of inputs."""

    def __init__(self, weights: Sequence[torch.Tensor], num_heads: int) -> None:
        import tvm_ffi

        self.module = native.load("cpu").module
        self.num_heads, self.layers = num_heads, len(weights) // 4
        # (an Array is built once: it takes longer to pass tensors one by one than to look at them)
        self.weights: Any = tvm_ffi.convert([weight.detach() for weight in weights])
        qkv, down = weights[0], weights[3]
        self.head_dim, self.inner = qkv.shape[0] // (3 * num_heads), down.shape[1]
        self.size = self.layers * self.module.packed_size(qkv.shape[1], num_heads, self.head_dim, self.inner)
        self.fingerprint = self.module.fingerprint(self.weights)
        self.forward = self._pack(False)
        self._backward: torch.Tensor | None = None

    def _pack(self, backward: bool) -> torch.Tensor:
        packed = empty(self.size)
        self.module.pack_blocks(self.weights, self.num_heads, backward, packed, torch.get_num_threads())
        return packed

    @property
    def backward(self) -> torch.Tensor:
        if self._backward is None:
            self._backward = self._pack(True)
        return self._backward

    def sizes(self) -> tuple[int, int, int]:
        return self.num_heads, self.head_dim, self.inner


class _Entry:
    """What was packed, and of which tensors in which state."""

    def __init__(self, key: tuple[int, ...], weights: Sequence[torch.Tensor], packed: Packed) -> None:
        self.packed, self.states = packed, [_state(weight) for weight in weights]
        # when a weight is gone, so is its packed form; ids are used again
        self.weights = [weakref.ref(weight, lambda _: _entries.pop(key, None)) for weight in weights]

    def is_of(self, weights: Sequence[torch.Tensor]) -> bool:
        return (
            all(own() is weight for own, weight in zip(self.weights, weights))
            and self.states == [_state(weight) for weight in weights]
            and self.packed.module.fingerprint(self.packed.weights) == self.packed.fingerprint
        )


_entries: dict[tuple[int, ...], _Entry] = {}


def _state(weight: torch.Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def pack(weights: Sequence[torch.Tensor], num_heads: int) -> Packed:
    """The four matrices of each block in turn, packed now or before.

    A change is seen by a weight's version, which every in-place operation of PyTorch counts, by its address, and for
    those who write into ``weight.data``, which counts nothing, by a sample of its elements. Tensors made in
    ``torch.inference_mode()`` count nothing either, and of strided ones a copy is packed: both are packed in each call.
    """
    if any(weight.is_inference() or not weight.is_contiguous() for weight in weights):
        return Packed([weight.contiguous() for weight in weights], num_heads)
    key = (*map(id, weights), num_heads)
    entry = _entries.get(key)
    if entry is None or not entry.is_of(weights):
        del entry
        _entries.pop(key, None)  # before the new one, which then takes its memory
        entry = _entries[key] = _Entry(key, weights, Packed(weights, num_heads))
    return entry.packed

"""Weights in the order in which the CPU library reads them, packed again when they change.

A parameter's version misses many writes (see :mod:`hrm_kernels.casts`), so what is kept from an earlier call is
compared with the weights by a checksum of all their bytes. Inside :func:`hrm_kernels.frozen_weights` it is not.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from hrm_kernels import casts, native

Packed = TypeVar("Packed")


@dataclass
class _Entry:
    """What was packed.

    Attributes:
        versions: of the weights then.
        checksum: of the weights then; None until they come a second time: most weights that change come only once.
        storages: when the memory of a weight is gone, so is the entry. (References to the tensors would keep
            ``torch.utils.swap_tensors`` from working.)
    """

    value: Any
    versions: list[int]
    checksum: int | None
    storages: list[weakref.ref]


_entries: dict[Hashable, _Entry] = {}


def packed(weights: Sequence[torch.Tensor], options: Hashable, make: Callable[[list[torch.Tensor]], Packed]) -> Packed:
    """``make(contiguous weights)``, or what it gave before for the same memory with the same values.

    Args:
        weights: float32 or bfloat16, on the CPU. Of strided ones a copy is packed, in every call; so are tensors made
            in ``torch.inference_mode()``, whose memory may be used again unseen.
        options: what else ``make`` depends on.
        make: must not hold on to the weights.
    """
    if any(weight.is_inference() or not weight.is_contiguous() for weight in weights):
        return make([weight.contiguous() for weight in weights])
    own = list(weights)
    key = (options, *((weight.data_ptr(), weight.shape, weight.dtype) for weight in own))
    frozen = casts.active()
    if frozen is not None and frozen.knows(own):
        return frozen.packed(key, own, lambda: _compared(key, own, make))
    return _compared(key, own, make)


def _compared(key: Hashable, own: list[torch.Tensor], make: Callable[[list[torch.Tensor]], Packed]) -> Packed:
    entry, versions = _entries.get(key), [weight._version for weight in own]
    checksum = None
    if entry is not None and entry.versions == versions:
        checksum = _checksum(own)
        if checksum == entry.checksum:
            return entry.value
    del entry
    _entries.pop(key, None)  # before the new one, which then takes its memory
    value = make(own)
    storages = [weakref.ref(weight.untyped_storage(), lambda _: _entries.pop(key, None)) for weight in own]
    _entries[key] = _Entry(value, versions, checksum, storages)
    return value


def _checksum(weights: list[torch.Tensor]) -> int:
    return native.load("cpu").module.checksum([weight.detach() for weight in weights], torch.get_num_threads())

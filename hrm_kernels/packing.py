"""Weights in the order in which the CPU library reads them, packed again when they change.

The version of a parameter misses many writes (see :mod:`hrm_kernels.casts`). A cached result is therefore used only if
a checksum of all bytes of the weights is unchanged. Inside :func:`hrm_kernels.frozen_weights` there is no checksum.
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
    """Packed weights.

    Attributes:
        versions: the versions of the weights when they were packed.
        checksum: their checksum then; None until the weights are used a second time, because weights that change are
            mostly used once.
        storages: the entry is removed when the memory of a weight is freed. (References to the tensors would break
            ``torch.utils.swap_tensors``.)
    """

    value: Any
    versions: list[int]
    checksum: int | None
    storages: list[weakref.ref]


_entries: dict[Hashable, _Entry] = {}


def packed(weights: Sequence[torch.Tensor], options: Hashable, make: Callable[[list[torch.Tensor]], Packed]) -> Packed:
    """``make(contiguous weights)``, or its earlier result for the same memory with the same values.

    Args:
        weights: float32 or bfloat16, on the CPU. Strided weights are copied and packed in every call. So are tensors
            made in ``torch.inference_mode()``, because writes to them are not counted.
        options: everything else that ``make`` depends on.
        make: must not keep references to the weights.
    """
    if any(weight.is_inference() or not weight.is_contiguous() for weight in weights):
        return make([weight.contiguous() for weight in weights])
    own = list(weights)
    key = (options, *((weight.data_ptr(), weight.shape, weight.dtype) for weight in own))
    frozen = casts.active()
    if frozen is not None and frozen.knows(own):
        return frozen.packed(key, own, lambda: _compared(key, own, make))
    return _compared(key, own, make)


def is_kept(weights: list[torch.Tensor]) -> bool:
    """Whether :func:`packed` keeps its result without a checksum: inside ``frozen_weights``, for its weights."""
    frozen = casts.active()
    return frozen is not None and frozen.knows(weights)


def _compared(key: Hashable, own: list[torch.Tensor], make: Callable[[list[torch.Tensor]], Packed]) -> Packed:
    entry, versions = _entries.get(key), [weight._version for weight in own]
    checksum = None
    if entry is not None and entry.versions == versions:
        checksum = _checksum(own)
        if checksum == entry.checksum:
            return entry.value
    del entry
    _entries.pop(key, None)  # first, so that the new entry can use its memory
    value = make(own)
    storages = [weakref.ref(weight.untyped_storage(), lambda _: _entries.pop(key, None)) for weight in own]
    _entries[key] = _Entry(value, versions, checksum, storages)
    return value


def _checksum(weights: list[torch.Tensor]) -> int:
    return native.load("cpu").module.checksum([weight.detach() for weight in weights], torch.get_num_threads())

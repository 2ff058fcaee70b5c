"""Large CPU tensors whose memory is used again.

The allocator gives memory of this size back to the system when a tensor dies, and every fresh page costs a fault when
it is first written: a third of the time of a forward pass that keeps 130 MB for its backward.
"""

import threading
import weakref
from collections import OrderedDict

import torch

KEPT = 1 << 30
"""Bytes that wait to be used again, at most; the longest unused go first."""

_free: "OrderedDict[int, torch.Tensor]" = OrderedDict()  # by address
_waiting = 0  # bytes of them all
_lock = threading.RLock()  # re-entrant: the collector may call _give_back in a thread that has it, anywhere below


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``torch.empty`` on the CPU, on memory that an earlier tensor of this size no longer needs, where there is any."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype, device="cpu")
    owner = _take(size)
    if owner is None:
        owner = torch.empty(size, dtype=torch.uint8, device="cpu")
    # the array is what the new tensor's storage holds on to: once it is gone, nothing uses the memory any more
    array = owner.numpy()[:]
    weakref.finalize(array, _give_back, owner).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)


def _take(size: int) -> torch.Tensor | None:
    """The memory of this size that was given back last; None where there is none."""
    global _waiting
    with _lock:
        for address in reversed(list(_free)):  # a copy, as what is given back meanwhile changes _free
            owner = _free.get(address)
            if owner is not None and owner.numel() == size:
                if _free.pop(address, None) is not None:
                    _waiting -= size
                return owner
    return None


def _give_back(owner: torch.Tensor) -> None:
    global _waiting
    with _lock:
        _free[owner.data_ptr()] = owner
        _waiting += owner.numel()
        while _free and _waiting > KEPT:
            _waiting -= _free.popitem(last=False)[1].numel()

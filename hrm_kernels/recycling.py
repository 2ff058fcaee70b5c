"""Large CPU tensors whose memory is used again.

The allocator returns blocks of this size to the system when a tensor is freed. Every new page then costs a page fault
at the first write: a third of the time of a forward pass that keeps 130 MB for its backward.
"""

import mmap
import threading
import weakref
from collections import OrderedDict

import torch

KEPT = 1 << 30
"""The most bytes that wait to be used again; the blocks that were unused for longest are freed first."""

SMALLEST = 1 << 17
"""Bytes of the smallest tensor whose memory is kept. An allocator keeps smaller ones (glibc below 128 KB)."""

HUGE = 4 << 20
"""Bytes from which on the system is asked for pages of 2 MB (Linux): packed weights and what a backward needs are read
from end to end, and each small page costs a look-up."""

_free: "OrderedDict[int, torch.Tensor]" = OrderedDict()  # by address
_waiting = 0  # bytes in _free
_lock = threading.RLock()  # re-entrant: the garbage collector may call _give_back anywhere below


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``torch.empty`` on the CPU, in the memory of an earlier tensor of this size if there is one."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    owner = _take(size)
    if owner is None:
        owner = _allocate(size)
    # the new tensor's storage holds a reference to the array: once the array is freed, nothing uses the memory
    array = owner.numpy()[:]
    weakref.finalize(array, _give_back, owner).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)


def _allocate(size: int) -> torch.Tensor:
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without huge pages
        pass
    return torch.frombuffer(memory, dtype=torch.uint8)


def _take(size: int) -> torch.Tensor | None:
    """The memory of this size that was freed last; None if there is none."""
    global _waiting
    with _lock:
        for address in reversed(list(_free)):  # a copy: _give_back may change _free meanwhile
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

"""Large CPU tensors whose memory is used again.

The allocator gives memory of this size back to the system when a tensor dies, and every fresh page costs a fault when
it is first written: a third of the time of a forward pass that keeps 130 MB for its backward.
"""

import weakref
from collections import OrderedDict

import torch

KEPT = 1 << 30
"""Bytes that wait to be used again, at most; the longest unused go first."""

_free: "OrderedDict[int, torch.Tensor]" = OrderedDict()  # by address


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``torch.empty`` on the CPU, on memory that an earlier tensor of this size no longer needs, where there is any."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    for address in reversed(_free):
        if _free[address].numel() == size:
            owner = _free.pop(address)
            break
    else:
        owner = torch.empty(size, dtype=torch.uint8)
    # the array is what the new tensor's storage holds on to: once it is gone, nothing uses the memory any more
    array = owner.numpy()[:]
    weakref.finalize(array, _give_back, owner).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)


def _give_back(owner: torch.Tensor) -> None:
    _free[owner.data_ptr()] = owner
    while sum(tensor.numel() for tensor in _free.values()) > KEPT:
        _free.popitem(last=False)

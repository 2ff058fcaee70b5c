import gc

import torch

from hrm_kernels import recycling
from hrm_kernels.recycling import empty


def test_memory_is_used_again_only_when_nothing_holds_it():
    size = 12_345
    first = empty(size)
    address = first.data_ptr()
    assert address % 64 == 0 and first.shape == (size,) and first.dtype == torch.float32
    view = first[5:].view(-1)
    del first
    gc.collect()
    other = empty(size)
    assert other.data_ptr() != address, "a view still holds it"
    del view
    gc.collect()
    again = empty(5, size // 5)
    assert again.data_ptr() == address and again.shape == (5, size // 5)
    assert empty(2 * size, dtype=torch.bfloat16).data_ptr() not in (address, other.data_ptr())


def test_tensors_without_elements():
    assert empty(0).shape == (0,) and empty(3, 0, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(recycling, "KEPT", 40_000)
    tensors = [empty(5000) for _ in range(4)]
    tensors.clear()
    gc.collect()
    assert sum(tensor.numel() for tensor in recycling._free.values()) <= 40_000


def test_a_gradient_may_be_one():
    weight = torch.nn.Parameter(torch.ones(100, 100))
    weight.grad = empty(100, 100).fill_(1)
    torch.optim.SGD([weight], lr=1.0).step()
    assert not weight.any()

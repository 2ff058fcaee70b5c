import gc
import mmap
import sys
import threading
from collections import OrderedDict

import pytest
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


@pytest.fixture(autouse=True)
def keeps_every_size(monkeypatch):
    monkeypatch.setattr(recycling, "SMALLEST", 1)


def test_small_tensors_are_the_allocators(monkeypatch):
    monkeypatch.setattr(recycling, "SMALLEST", 4000)
    monkeypatch.setattr(recycling, "_free", OrderedDict())
    monkeypatch.setattr(recycling, "_waiting", 0)
    small, large = empty(999), empty(1000)
    del small, large
    gc.collect()
    assert [owner.numel() for owner in recycling._free.values()] == [4000]


def test_memory_of_huge_pages_is_used_like_any_other(monkeypatch):
    monkeypatch.setattr(recycling, "HUGE", 1000)
    first = empty(3, 500).fill_(2)
    address = first.data_ptr()
    assert address % mmap.PAGESIZE == 0 and first.sum() == 3000
    del first
    gc.collect()
    assert empty(1500).data_ptr() == address


def test_tensors_without_elements():
    assert empty(0).shape == (0,) and empty(3, 0, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(recycling, "KEPT", 40_000)
    tensors = [empty(5000) for _ in range(4)]
    tensors.clear()
    gc.collect()
    assert sum(tensor.numel() for tensor in recycling._free.values()) <= 40_000
    assert recycling._waiting == sum(tensor.numel() for tensor in recycling._free.values())


@pytest.fixture
def quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # a finalizer's errors
def test_threads_share_what_waits(quick_switches, monkeypatch):
    monkeypatch.setattr(recycling, "KEPT", 400_000)
    problems = []

    def work(value):
        try:
            for round in range(400):
                held = [empty(1000 + 100 * ((round + i) % 20)).fill_(value) for i in range(20)]
                if not all(tensor.eq(value).all() for tensor in held):
                    problems.append("two tensors had the same memory")
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert recycling._waiting == sum(tensor.numel() for tensor in recycling._free.values()) <= 400_000


def test_memory_may_come_back_while_some_is_looked_for(monkeypatch):
    """As where the garbage collector runs in the middle of ``empty``."""

    class Collecting(OrderedDict):
        def get(self, address, default=None):
            if returned:
                recycling._give_back(returned.pop())
            return super().get(address, default)

    owners = [torch.empty(size, dtype=torch.uint8) for size in (4000, 8000, 400)]
    returned = owners[2:]
    monkeypatch.setattr(recycling, "_free", Collecting())
    monkeypatch.setattr(recycling, "_waiting", 0)
    monkeypatch.setattr(recycling, "KEPT", 12_000)
    for owner in owners[:2]:
        recycling._give_back(owner)
    found = empty(1000)  # while it is looked for, it is the oldest of too many, and goes
    assert found.numel() == 1000 and not returned
    assert list(recycling._free) == [owner.data_ptr() for owner in owners[1:]] and recycling._waiting == 8400


def test_a_gradient_may_be_one():
    weight = torch.nn.Parameter(torch.ones(100, 100))
    weight.grad = empty(100, 100).fill_(1)
    torch.optim.SGD([weight], lr=1.0).step()
    assert not weight.any()

import os

import pytest
import torch
import torch.utils._device

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread each: the workers share the cores. The variable is for processes that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# torch remembers which functions ``with torch.device(...)`` is for when it first asks: the real ones, not poisoned ones
torch.utils._device._device_constructors()

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before hrm_kernels or Triton is imported: kernels run on CPU tensors


@pytest.fixture
def poisoned(monkeypatch):
    """New tensors hold NaN (integers -7), so that what a kernel leaves unwritten shows. None is on used memory."""

    def poison(make):
        def made(*arguments, **options):
            out = make(*arguments, **options)
            if out.dtype == torch.uint8:
                return out.fill_(255)  # memory for tensors of any dtype: NaN in a floating one
            return out.fill_(float("nan") if out.is_floating_point() else -7)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
    monkeypatch.setattr("hrm_kernels.recycling._take", lambda size: None)

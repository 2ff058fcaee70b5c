"""A capture of a CPU's operators in the place of a CUDA graph's."""

from copy import deepcopy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hrm_kernels.ops.sparse_sign_sgd import reference as sparse_sign_sgd

aten = torch.ops.aten
WAITS = {  # operators that tell the host what a tensor on the device holds
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}


class Recorder(TorchDispatchMode):
    """Notes every operator with the tensors it read and made; refuses those that a host would wait for.

    An index of booleans is ``nonzero`` underneath, which a CPU does not show: it is looked for in the arguments.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in WAITS, f"{function} waits for the device"
        if function in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), "boolean index"
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        """The operators once more, on the same memory, as a CUDA graph does; Python's side of the step is not run."""
        for function, args, kwargs, out in self.calls:
            for made, again in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(made, torch.Tensor) and made.data_ptr() != again.data_ptr():
                    made.copy_(again)


class RecordedCapture:
    """A capture on a CPU. It has to run the step to see its operators, so the first replay has nothing left to do."""

    def __init__(self):
        self.recorders, self.replays = [], 0

    def run(self, function):
        function()

    def __call__(self, function):
        recorder, done = Recorder(), []
        with recorder:
            function()
        self.recorders.append(recorder)

        def replay():
            self.replays += 1
            if done:
                recorder.replay()
            done.append(True)

        return replay


@pytest.fixture
def told():
    """A progress that is told of work that begins at 0 and grows; ``ends`` has the last of each kind."""

    class Told:
        def __init__(self):
            self.ends = {}

        def __call__(self, description, done, total):
            before = self.ends.get(description)
            assert done == 0 if before is None else before[0] <= done <= total
            self.ends[description] = done, total

    return Told()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Optimisers check no values of tensors, which would wait for a GPU."""
    monkeypatch.setattr(sparse_sign_sgd, "can_check_values", lambda weights: False)


@pytest.fixture
def recorder(as_on_a_gpu):
    """The class of modes that note operators."""
    return Recorder


@pytest.fixture
def recorded_capture(as_on_a_gpu):
    return RecordedCapture()


@pytest.fixture
def jittered():
    """A function that gives copies of a model whose weights are off by up to a unit in the last place.

    What plain PyTorch makes of them says how far rounding may go: after several segments one draw says little, errors
    then range over a factor of ten.
    """

    def copies(model, runs=4):
        for seed in range(runs):
            generator, copy = torch.Generator().manual_seed(seed), deepcopy(model)
            with torch.no_grad():
                for weight in copy.parameters():
                    weight *= 1 + (torch.rand(weight.shape, generator=generator) - 0.5) * 2**-22
            yield copy

    return copies

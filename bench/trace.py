"""Count what a GPU would do, on a machine without one: ``python -m bench.trace`` compares with the committed table.

The workloads run on fake tensors, which have shapes and no memory, on the triton backend with the tiles of an H200.
Every operation of PyTorch and every Triton kernel is noted instead of run:

- *launches*: kernels, copies and fills. An operation of PyTorch counts as one.
- *bytes*: each tensor that a launch reads or writes, once. A kernel that reads one again moves more.
- *operations*: those of matrix products and attention.
- *allocations*: new tensors, also those that reuse memory.

An operation that waits for the device is an error, because a step must be capturable as a CUDA graph. ``--write``
writes ``tests/data/trace.tsv`` after an intended change.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench import models
from bench.inputs import op_arguments
from bench.processes import ROOT
from bench.sizes import SHORT, Size
from hrm_kernels import backends, casts, transformer_block
from hrm_kernels.autodiff import tensors
from hrm_kernels.casts import FrozenWeights
from hrm_kernels.ops.adam_atan2 import triton_kernels as adam

TABLE = ROOT / "tests" / "data" / "trace.tsv"
HEADER = "workload\tlaunch\tlaunches\tMB\tGFLOP"

aten = torch.ops.aten
WAITS = {  # they tell the host what a tensor on the device holds
    aten._local_scalar_dense,
    aten.nonzero,
    aten.is_nonzero,
    aten.equal,
    aten.masked_select,
    aten.unique_dim,
    aten._unique2,
    aten.unique_consecutive,
    aten.bincount,
}
INDEXED = {aten.index, aten.index_put, aten.index_put_}
READS_ROWS = {aten.embedding, aten.index, aten.gather, aten.index_select}
"""They read as much of their first argument as they return."""
OVERWRITES = {aten.copy_, aten.fill_, aten.zero_}
"""They write their first argument without reading it."""


class Waits(AssertionError):
    """An operation waits for the device."""


@dataclass
class Row:
    """What all launches of one name do together."""

    launches: int = 0
    bytes: float = 0
    operations: float = 0

    def add(self, moved: float, operations: float) -> None:
        self.launches += 1
        self.bytes += moved
        self.operations += operations


@dataclass
class Counts:
    """What a workload does.

    Attributes:
        rows: by the name of the operation or kernel.
        allocations: number of new tensors on the device.
        allocated: their bytes.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    allocations: int = 0
    allocated: int = 0

    def launch(self, name: str, moved: float, operations: float) -> None:
        self.rows.setdefault(name, Row()).add(moved, operations)

    @property
    def total(self) -> Row:
        rows = self.rows.values()
        return Row(*(sum(getattr(row, name) for row in rows) for name in ("launches", "bytes", "operations")))

    def lines(self, workload: str) -> Iterator[str]:
        """Lines of the table: all launches, by their number, and the allocations."""
        ranked = sorted(self.rows.items(), key=lambda item: (-item[1].launches, item[0]))
        for name, row in [("all", self.total), *ranked]:
            yield f"{workload}\t{name}\t{row.launches}\t{row.bytes / 1e6:.6g}\t{row.operations / 1e9:.6g}"
        yield f"{workload}\tallocations\t{self.allocations}\t{self.allocated / 1e6:.6g}\t0"


class Recorder(TorchDispatchMode):
    """Counts the operations of PyTorch and the launches of Triton kernels while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, function.overloadpacket
        _require_no_wait(packet, args)
        out = function(*args, **kwargs)
        given, made = list(tensors([*args, *kwargs.values()])), list(tensors([out]))
        new = [tensor for tensor in made if not any(_memory(tensor) == _memory(other) for other in given)]
        self.counts.allocations += len(new)
        self.counts.allocated += sum(tensor.nbytes for tensor in new)
        if "empty" in packet.__name__ or not (new or function._schema.is_mutable):  # memory only, or a view
            return out
        counted = torch.ops.aten.addmm if packet is torch.ops.aten.addmm_ else packet
        operations = flop_registry[counted](*args, **kwargs, out_val=out) if counted in flop_registry else 0
        self.counts.launch(packet.__name__, _moved(packet, given, made), operations)
        return out

    def kernel(self, kernel: Any, grid: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Note a launch ``kernel[grid](*arguments, **options)``."""
        bound = dict(zip(kernel.arg_names, arguments)) | options
        memory = {_memory(tensor): tensor.nbytes for tensor in tensors(list(bound.values()))}
        package = kernel.fn.__module__.split(".")[-2]
        self.counts.launch(f"{package}.{kernel.fn.__name__}", sum(memory.values()), _operations(bound))


def _require_no_wait(packet: Any, args: tuple[Any, ...]) -> None:
    masks = args[1] if packet in INDEXED else ()
    if packet in WAITS or any(index is not None and index.dtype is torch.bool for index in masks):
        raise Waits(f"{packet.__name__} waits for the device, so a CUDA graph cannot capture the step")


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _moved(packet: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> int:
    """Bytes of the arguments and results; of an expanded tensor only what is in memory."""
    written = sum(tensor.nbytes for tensor in made)
    if packet in READS_ROWS:
        return 2 * written + sum(tensor.nbytes for tensor in given[1:])
    read = given[1:] if packet in OVERWRITES else given
    return written + sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in read)


def _operations(bound: dict[str, Any]) -> float:
    """Of a Triton kernel, by its arguments: products have M rows and a matrix w, attention has qkv and S positions."""
    if "w" in bound and "M" in bound:
        return 2.0 * bound["M"] * bound["w"].numel()
    if "qkv" in bound and "S" in bound and "turned" not in bound:
        heads = bound["qkv"].numel() / (3 * bound["S"] * bound["D"])
        # products of S x S x D: scores, values; backward scores, dP, dq, dk, dv; split scores, dP, dq and the rest
        products = 2 if "dqkv" not in bound else 5 if "delta" not in bound else 3 if "out" in bound else 4
        return 2.0 * products * heads * bound["S"] ** 2 * bound["D"]
    return 0.0


@contextmanager
def simulated_gpu() -> Iterator[Recorder]:
    """Let Triton kernels serve fake tensors of the CPU, and note their launches.

    Fake tensors of a GPU would need a PyTorch that is built for GPUs.
    """
    recorder = Recorder()

    def get(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **options: recorder.kernel(kernel, grid, arguments, options)

    def launch_adam(table: Any, step: Any, scalars: Any) -> None:
        _launch_adam(table, step, scalars)
        row = recorder.counts.rows["adam_atan2.step_kernel"]  # it reads addresses from a table, not from its arguments
        row.bytes += sum(tensor.nbytes for tensor in [*step.grads, *step.written(), *step.params])
        row.bytes += sum(tensor.nbytes for tensor in [*step.exp_avgs, *step.exp_avg_sqs])

    from triton.runtime.jit import KernelInterface

    _launch_adam = adam._launch
    patches: list[Any] = [
        patch.object(KernelInterface, "__getitem__", get),
        patch.object(adam, "_launch", launch_adam),
        patch.object(backends, "PREFERENCE", {"cpu": ("triton", "reference")}),
        patch.object(backends, "INTERPRETING", False),
        patch.object(backends, "TRITON_DEVICE", "cpu"),
        patch.object(backends, "is_traced", lambda: False),  # launch kernels, not the ops that stand for them
        patch.object(casts, "nn", SimpleNamespace(Parameter=FakeTensor)),  # a parameter is of its tensor's type
        patch.object(casts, "empty", lambda *shape, dtype: torch.empty(shape, dtype=dtype)),
        patch.object(FakeTensor, "data_ptr", lambda self: _memory(self) + self.storage_offset() * self.itemsize),
        patch("torch.nn.init.trunc_normal_", lambda tensor, *rest, **options: tensor),  # it looks at the numbers
        patch.object(torch.nn.Module, "to", lambda module, device: module),  # fake parameters cannot be exchanged
    ]
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield recorder


def count(make: Callable[[], tuple[Any, ...]], call: Callable[..., Any]) -> Counts:
    """What ``call(*make())`` does, after one call that prepares optimisers and copies of weights."""
    with simulated_gpu() as recorder:
        arguments = make()
        call(*arguments)
        recorder.counts = Counts()
        with recorder:
            call(*arguments)
    return recorder.counts


def training_step(size: Size) -> Counts:
    """A whole training step of the published 27M model."""

    def make() -> tuple[Any, ...]:
        model, optimizers, state = models.training_arguments(*models.published_model(size, "cpu", torch.bfloat16))
        optimizers[0].param_groups[0]["capturable"] = True  # as on a GPU
        return model, optimizers, state

    return count(make, models.training_step)


def segment(size: Size) -> Counts:
    """One segment of an answer, as an engine runs it."""
    weights = FrozenWeights()

    def call(*arguments: Any) -> None:
        with torch.no_grad(), weights:
            models.segment(*arguments)

    return count(lambda: models.inference_arguments(*models.published_model(size, "cpu", torch.bfloat16)), call)


def block_pass(size: Size) -> Counts:
    """One block without gradients."""

    def call(*arguments: Any) -> None:
        with torch.no_grad():
            transformer_block(*arguments)

    return count(lambda: op_arguments("transformer_block", size, "cpu", torch.bfloat16, 0), call)


WORKLOADS: dict[str, Callable[[], Counts]] = {
    "training step, 384 rows": lambda: training_step(Size(384, SHORT)),
    "segment of an answer, 1 row": lambda: segment(Size(1, SHORT)),
    "block pass without gradients, 384 rows": lambda: block_pass(Size(384, SHORT)),
}


def lines() -> list[str]:
    """The table; other versions of PyTorch make other operations of the same calls."""
    made = f"# python -m bench.trace --write, with torch {torch.__version__.partition('+')[0]}"
    return [made, HEADER, *(line for name, counted in WORKLOADS.items() for line in counted().lines(name))]


def changes(now: list[str]) -> list[str]:
    """What differs from the committed table; with another PyTorch only what is about Triton kernels."""
    before = TABLE.read_text().splitlines()
    if now[0] != before[0]:
        before, now = ([line for line in one if "_kernel\t" in line] for one in (before, now))
    return [f"- {line}" for line in before if line not in now] + [f"+ {line}" for line in now if line not in before]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    now = lines()
    if options.write:
        TABLE.write_text("\n".join(now) + "\n")
        print(f"wrote {len(now)} lines to {TABLE.relative_to(ROOT)}")
        return 0
    changed = changes(now)
    print("\n".join(changed or ["as in the table"]))
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())

"""A transformer block, a module of four blocks, and the cycles of a segment without gradients."""

from collections.abc import Callable, Iterator

from bench.setup import Setup
from bench.sizes import LONG, SHORT, Size
from bench.workload import Workload
from bench.workloads import op_workload


def workloads(setup: Setup) -> Iterator[Workload]:
    on_gpu, itemsize = setup.device == "cuda", setup.itemsize
    for B in [1, 8, 32, 384] if on_gpu else [1, 8, 32] if setup.full else [1, 8]:
        for backward in (False, True):
            if B > 1 or setup.full or not backward:
                yield op_workload("transformer_block", Size(B, SHORT), backward, itemsize=itemsize)
    for B in [1, 32] if on_gpu else [1]:
        for backward in (False, True) if setup.full or on_gpu else (False,):
            yield op_workload("transformer_block", Size(B, LONG), backward, itemsize=itemsize)
    for B in [1, 384] if on_gpu else [1]:
        yield op_workload("reasoning_module", Size(B, SHORT), itemsize=itemsize)
        yield op_workload("recurrent_cycles", Size(B, SHORT), itemsize=itemsize, is_capturable=False)


def test_block(record: Callable[[], None]) -> None:
    record()

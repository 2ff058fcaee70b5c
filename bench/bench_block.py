"""A transformer block, a module of four, and the cycles of a segment without gradients."""

from collections.abc import Callable, Iterator

from bench.bench_ops import LONG, SHORT
from bench.suite import Setup
from bench.workloads import Workload, of_op


def workloads(setup: Setup) -> Iterator[Workload]:
    on_gpu, itemsize = setup.device == "cuda", setup.itemsize
    for B in [1, 8, 32, 384] if on_gpu else [1, 8, 32] if setup.full else [1, 8]:
        for backward in (False, True):
            if B > 1 or setup.full or not backward:
                yield of_op("transformer_block", B, SHORT, backward, itemsize=itemsize)
    for B in [1, 32] if on_gpu else [1]:
        for backward in (False, True) if setup.full or on_gpu else (False,):
            yield of_op("transformer_block", B, LONG, backward, itemsize=itemsize)
    for B in [1, 384] if on_gpu else [1]:
        yield of_op("reasoning_module", B, SHORT, itemsize=itemsize)
        yield of_op("recurrent_cycles", B, SHORT, itemsize=itemsize, graph=False)


def test_block(record: Callable[[], None]) -> None:
    record()

"""Every op at the published width: forward only, and forward with backward; both optimisers.

Ops that run whole blocks are in ``bench_block``.
"""

from collections.abc import Callable, Iterator

from bench.inputs import OPS
from bench.setup import Setup
from bench.sizes import LONG, SHORT, Size
from bench.workload import Workload
from bench.workloads import adam_atan2, op_workload, sparse_sign_sgd

BLOCKS = ("transformer_block", "reasoning_module", "recurrent_cycles", "conv_cycles")


def workloads(setup: Setup) -> Iterator[Workload]:
    batches = [8, 384] if setup.full else [384 if setup.device == "cuda" else 8]
    for B in batches:
        for op in (op for op in OPS if op not in BLOCKS):
            for backward in (False, True):
                # the published loss is computed in float64, which no compiler makes fast
                is_compiled = op != "stablemax_cross_entropy"
                yield op_workload(op, Size(B, SHORT), backward, itemsize=setup.itemsize, is_compiled=is_compiled)
    B = 32 if setup.device == "cuda" else 1
    for backward in (False, True):
        yield op_workload("rope_attention", Size(B, LONG), backward, itemsize=setup.itemsize)
    yield adam_atan2()
    yield sparse_sign_sgd(384)


def test_op(record: Callable[[], None]) -> None:
    record()

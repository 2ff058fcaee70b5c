"""Every op at the published width, forward, and forward with backward."""

from collections.abc import Callable, Iterator

from bench.suite import Setup
from bench.workloads import Workload, adam_atan2, of_op, sparse_sign_sgd

SHORT, LONG = 82, 901
"""Positions of a Sudoku, and of a maze or an ARC grid."""


def workloads(setup: Setup) -> Iterator[Workload]:
    batches = [8, 384] if setup.full else [384 if setup.device == "cuda" else 8]
    for B in batches:
        for op in ("add_rms_norm", "swiglu", "rope_attention", "token_mixing", "stablemax_cross_entropy"):
            for backward in (False, True):
                # the published loss is computed in float64, which no compiler makes fast
                compiled = op != "stablemax_cross_entropy"
                yield of_op(op, B, SHORT, backward, itemsize=setup.itemsize, compiled=compiled)
    B = 32 if setup.device == "cuda" else 1
    for backward in (False, True):
        yield of_op("rope_attention", B, LONG, backward, itemsize=setup.itemsize)
    yield adam_atan2()
    yield sparse_sign_sgd(384)


def test_op(record: Callable[[], None]) -> None:
    record()

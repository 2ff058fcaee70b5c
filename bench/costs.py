"""The fewest bytes and floating-point operations each workload needs.

Single ops have theirs in their specification: every input is read once and every output written once. Operations are
those of matrix products only.
"""

from bench.sizes import Size
from hrm_kernels import specs
from hrm_kernels.spec import Cost, Sizes


def op_cost(op: str, size: Size, backward: bool = False, itemsize: int = 2) -> Cost:
    """Cost of a public op of ``hrm_kernels``, with its gradients where ``backward``."""
    return specs()[op].cost(size.of(op), itemsize, backward)


def adam_atan2_cost(weights: int) -> Cost:
    """A step on float32 weights."""
    return specs()["adam_atan2"].cost(Sizes(I=weights, D=1, layers=1), 4, False)


def sparse_sign_sgd_cost(rows: int, width: int) -> Cost:
    """A step on float32 rows."""
    return specs()["sparse_sign_sgd"].cost(Sizes(B=rows, D=width), 4, False)


def segment_cost(size: Size, itemsize: int) -> Cost:
    """One segment without gradients.

    Each pass reads its block's weights again: the other blocks' weights evict them from the caches in between.
    """
    states = 3 * size.segment_passes // size.layers * size.tokens * size.width
    moved = (size.segment_passes * size.block_weights + states) * itemsize
    return Cost(moved, size.segment_passes * size.block_operations)


def training_step_cost(size: Size, itemsize: int) -> Cost:
    """One training step: every pass reads its weights or writes their gradients, then AdamATan2 takes a step."""
    moved: float = size.training_passes * size.block_weights * itemsize
    moved += adam_atan2_cost(2 * size.layers * size.block_weights).bytes
    return Cost(moved, size.training_passes * size.block_operations)

"""The fewest bytes and floating-point operations each workload needs.

Bytes: every input is read once and every output written once; with a backward pass, what it needs of the forward pass
is written and read once. Operations: those of matrix products only.
"""

from typing import NamedTuple

from bench.sizes import Size
from hrm_kernels.nn import swiglu_inner_size


class Cost(NamedTuple):
    """Bytes moved through memory and floating-point operations; 0 where there are none or nobody has counted."""

    bytes: float = 0
    operations: float = 0


def op_cost(op: str, size: Size, backward: bool = False, itemsize: int = 2) -> Cost:
    """Cost of a public op of ``hrm_kernels``, with its gradients where ``backward``."""
    tokens, width = size.tokens, size.width
    if op == "add_rms_norm":
        return Cost((7 if backward else 3) * width * itemsize * tokens)
    if op == "swiglu":
        return Cost((8 if backward else 3) * size.inner * itemsize * tokens)
    if op == "rope_attention":
        operations = (14 if backward else 4) * size.positions * width * tokens
        return Cost((12 if backward else 4) * width * itemsize * tokens, operations)
    if op == "token_mixing":
        weights, passes = 3 * size.positions * swiglu_inner_size(size.positions, 4.0), 3 if backward else 1
        # each weight is read once; with backward it is read twice and its gradient written
        moved = (5 if backward else 2) * width * tokens + passes * weights
        return Cost(moved * itemsize, passes * 2 * weights * size.batch * width)
    if op == "stablemax_cross_entropy":
        logits, label, loss, sums = size.vocabulary * itemsize, 8, 4, 8
        forward = logits + label + loss
        # backward reads the logits, the label and the loss gradient, and writes the logits' gradient
        return Cost((2 * forward + logits + 2 * sums if backward else forward) * tokens)
    blocks, passes, states = {  # states read and written
        "transformer_block": (1, 1, 2),
        "reasoning_module": (size.layers, size.layers, 3),
        "recurrent_cycles": (2 * size.layers, 4 * size.layers, 5),  # without gradients: 3 L updates and 1 H update
    }[op]
    # with backward: weights are read twice and their gradients written; states and their gradients move
    weights = (3 if backward else 1) * blocks * size.block_weights
    moved = weights + (2 if backward else 1) * states * tokens * width
    return Cost(moved * itemsize, (3 if backward else 1) * passes * size.block_operations)


def adam_atan2_cost(weights: int) -> Cost:
    """A step on float32 weights: reads weight, gradient and two averages, writes all but the gradient."""
    return Cost(28 * weights)


def sparse_sign_sgd_cost(rows: int, width: int) -> Cost:
    """A step on float32 rows: reads row and gradient, writes the row."""
    return Cost(12 * rows * width)


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

"""Workloads of the published model: a segment, an answer, a training step."""

from functools import partial

from bench import models, published
from bench.costs import segment_cost, training_step_cost
from bench.sizes import SEGMENTS, Size
from bench.workload import Workload
from hrm_kernels.spec import Cost


def segment(size: Size, itemsize: int) -> Workload:
    """One segment without gradients: embedding, six module updates, heads."""
    return Workload(
        f"segment {size.batch} x {size.positions}",
        lambda device, dtype, seed: models.inference_arguments(size, device, dtype),
        models.segment,
        cost=segment_cost(size, itemsize),
        is_capturable=False,
        kind="segment",
        batch=size.batch,
        positions=size.positions,
        eager=models.eager_segment,
        to_float64=models.inference_in_float64,
    )


def answer(size: Size) -> Workload:
    """All segments of an answer; its first segment is checked."""
    return Workload(
        "Sudoku answer",
        lambda device, dtype, seed: models.inference_arguments(size, device, dtype),
        models.segment,
        cost=Cost(0, SEGMENTS * size.segment_passes * size.block_operations),
        is_compiled=False,
        eager=models.eager_segment,
        to_float64=models.inference_in_float64,
        variants={"all segments": models.answer},
    )


def training_step(size: Size, itemsize: int, as_graph: bool = False) -> Workload:
    """A whole training step: refill, segment, Q target, loss, backward, both optimisers."""
    return Workload(
        f"training step {size.batch} x {size.positions}{', one graph' if as_graph else ''}",
        lambda device, dtype, seed: models.training_arguments(size, device, dtype),
        models.graphed_training_step if as_graph else models.training_step,
        cost=training_step_cost(size, itemsize),
        is_capturable=False,
        is_checked=not as_graph,  # a graph returns only its loss
        is_stateful=True,
        kind="training step",
        batch=size.batch,
        positions=size.positions,
        eager=models.eager_training_step,
        to_float64=models.training_in_float64,
        compile_inner=lambda compiler: partial(models.eager_training_step, forward=compiler(published.forward)),
    )

"""A whole training step of the published 27M model: refill, segment, Q target, loss, backward, both optimisers.

The loss and every gradient are checked against float64 on the first step.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench import published
from bench.bench_ops import SHORT
from bench.suite import Setup
from bench.workloads import (
    LAYERS,
    MULTIPLY_ADDS,
    TRAINING_PASSES,
    Workload,
    block_operations,
    train,
    train_in_one_graph,
    trainer,
)

PARAMETERS = 2 * LAYERS * MULTIPLY_ADDS


def workloads(setup: Setup) -> Iterator[Workload]:
    if setup.device == "cuda":
        yield from (step(B, setup) for B in (32, 384))
        yield step(384, setup, ", one graph")
    else:
        yield from (step(B, setup) for B in ([1, 2, 8, 16] if setup.full else [2]))


def step(B: int, setup: Setup, graph: str = "") -> Workload:
    # weights read by every pass, their gradients written, 28 bytes of each parameter for the optimiser
    moved = TRAINING_PASSES * MULTIPLY_ADDS * setup.itemsize + 28 * PARAMETERS
    return Workload(
        f"training step {B} x {SHORT}{graph}",
        lambda device, dtype, seed: trainer(device, dtype, B, SHORT, LAYERS),
        train_in_one_graph if graph else train,
        bytes=moved,
        operations=TRAINING_PASSES * block_operations(B * SHORT, SHORT),
        graph=False,
        compiled=setup.device == "cuda",  # on a CPU it compiles longer than all the rest takes
        checked=not graph,  # (it hands out its loss alone)
        own=True,
        kind="training step",
        size=(B, SHORT),
        plain=published.train_step,
        widen=_widened,
        compiling=lambda compiled: partial(published.train_step, call=compiled(published.forward)),
    )


def _widened(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    model, _, state = arguments
    return published.in_float64(model), [], {**state, "carry": published.carry_in_float64(state["carry"])}


def test_training_step(record: Callable[[], None]) -> None:
    record()

"""One segment of the published 27M model without gradients: embedding, six module updates, heads."""

from collections.abc import Callable, Iterator

from bench.bench_ops import LONG, SHORT
from bench.suite import Setup
from bench.workloads import (
    LAYERS,
    MULTIPLY_ADDS,
    D,
    Workload,
    block_operations,
    in_float64,
    think,
    think_as_published,
    thinker,
)

PASSES = 6 * LAYERS
"""Blocks: 2 cycles of 2 L updates and 1 H update."""


def workloads(setup: Setup) -> Iterator[Workload]:
    if setup.device == "cuda":
        sizes = [(1, SHORT), (8, SHORT), (32, SHORT), (384, SHORT), (1, LONG), (32, LONG)]
    elif setup.full:
        sizes = [(1, SHORT), (4, SHORT), (8, SHORT), (32, SHORT), (1, 256), (1, 512), (1, LONG), (8, LONG)]
    else:
        sizes = [(1, SHORT), (4, SHORT), (8, SHORT), (1, 300), (1, LONG)]
    yield from (segment(B, S, setup) for B, S in sizes)


def segment(B: int, S: int, setup: Setup) -> Workload:
    # each state, and each weight of a block, once a use: between uses lie as many bytes of other blocks
    moved = (PASSES * MULTIPLY_ADDS + 3 * PASSES // LAYERS * B * S * D) * setup.itemsize
    return Workload(
        f"segment {B} x {S}",
        lambda device, dtype, seed: thinker(device, dtype, B, S),
        think,
        bytes=moved,
        operations=PASSES * block_operations(B * S, S),
        graph=False,
        kind="segment",
        size=(B, S),
        plain=think_as_published,
        widen=in_float64,
    )


def test_segment(record: Callable[[], None]) -> None:
    record()

"""One segment of the published 27M model without gradients: embedding, six module updates, heads."""

from collections.abc import Callable, Iterator

from bench.model_workloads import segment
from bench.setup import Setup
from bench.sizes import LONG, SHORT, Size
from bench.workload import Workload


def workloads(setup: Setup) -> Iterator[Workload]:
    if setup.device == "cuda":
        sizes = [(1, SHORT), (8, SHORT), (32, SHORT), (384, SHORT), (1, LONG), (32, LONG)]
    elif setup.full:
        sizes = [(1, SHORT), (4, SHORT), (8, SHORT), (32, SHORT), (1, 256), (1, 512), (1, LONG), (8, LONG)]
    else:
        sizes = [(1, SHORT), (4, SHORT), (8, SHORT), (1, 300), (1, LONG)]
    yield from (segment(Size(B, S), setup.itemsize) for B, S in sizes)


def test_segment(record: Callable[[], None]) -> None:
    record()

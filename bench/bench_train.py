"""A whole training step of the published 27M model: refill, segment, Q target, loss, backward, both optimisers.

The loss and every gradient of the first step are checked against float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.model_workloads import training_step
from bench.setup import Setup
from bench.sizes import SHORT, Size
from bench.workload import Workload


def workloads(setup: Setup) -> Iterator[Workload]:
    if setup.device == "cuda":
        yield from (training_step(Size(B, SHORT), setup.itemsize) for B in (32, 384))
        yield training_step(Size(384, SHORT), setup.itemsize, as_graph=True)
    else:
        for B in [1, 2, 8, 16] if setup.full else [2]:
            # on a CPU the compilation takes longer than all the rest
            yield replace(training_step(Size(B, SHORT), setup.itemsize), is_compiled=False)


def test_training_step(record: Callable[[], None]) -> None:
    record()

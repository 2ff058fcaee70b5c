"""What a training step, a segment and a block pass would launch on a GPU is what the committed table says."""

import pytest
import torch

from bench import trace
from bench.costs import op_cost
from bench.sizes import SHORT, Size


def test_the_table_is_what_the_workloads_do():
    assert not trace.changes(trace.lines()), "if this is intended: python -m bench.trace --write"


def test_the_products_of_a_block_pass_are_counted():
    size = Size(3, SHORT)
    total = trace.block_pass(size).total
    assert total.operations == size.block_operations == op_cost("transformer_block", size).operations
    assert total.launches >= 5 and total.bytes > 2 * size.block_weights


@pytest.mark.parametrize("waiting", [lambda x: x.sum().item(), lambda x: x[x > 1], lambda x: x.nonzero()])
def test_an_operation_that_waits_for_the_device_is_an_error(waiting):
    with trace.simulated_gpu() as recorder:
        x = torch.ones(4)
        with recorder, pytest.raises(trace.Waits, match="waits for the device"):
            waiting(x)


def test_views_launch_nothing_and_results_are_allocated():
    with trace.simulated_gpu() as recorder:
        x = torch.ones(4, 8)
        with recorder:
            x.t().reshape(2, 16).add_(1)  # a copy, and an addition in place
    counts = recorder.counts
    assert {name: row.launches for name, row in counts.rows.items()} == {"clone": 1, "add_": 1}
    assert (counts.allocations, counts.allocated) == (1, 128)
    assert counts.rows["add_"].bytes == counts.rows["clone"].bytes == 256

"""The fewest bytes and operations, counted by hand."""

import torch

from bench.costs import op_cost
from bench.inputs import OPS
from bench.sizes import Size
from bench.workloads import small_workloads


def test_fewest_bytes_and_operations():
    tokens = 2 * 82
    assert op_cost("add_rms_norm", Size(2, 82), itemsize=4) == (3 * 512 * 4 * tokens, 0)
    assert op_cost("rope_attention", Size(2, 82)) == (4 * 512 * 2 * tokens, 4 * 82 * 512 * tokens)
    moved, operations = op_cost("recurrent_cycles", Size(2, 82))
    assert moved == 2 * (8 * 3_407_872 + 5 * tokens * 512)
    assert operations == 16 * tokens * (2 * 3_407_872 + 4 * 82 * 512)
    forward, with_backward = (op_cost("transformer_block", Size(1, 82), backward) for backward in (False, True))
    assert with_backward.operations == 3 * forward.operations


def test_a_specified_op_takes_part():
    names = {workload.name.split()[0] for workload in small_workloads(torch.float32, quick=True)}
    assert {*OPS, "AdamATan2", "SparseSignSGD"} == names and len(OPS) >= 9

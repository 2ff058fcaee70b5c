"""A table divided among processes gives the results of the whole table, to the bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hrm_kernels
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.optim import SparseSignSGD
from hrm_kernels.sharded_embedding import ShardedEmbedding

SCRIPT = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.optim import SparseSignSGD
from hrm_kernels.sharded_embedding import ShardedEmbedding

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
E, D = 11, 3
whole, sharded = SparseEmbedding(E, D).train(), ShardedEmbedding(E, D).train()
whole.weights.copy_(torch.randn(E, D, generator=torch.Generator().manual_seed(0)))
local = slice(sharded.first_row, sharded.first_row + len(sharded.weights))
sharded.weights.copy_(whole.weights[local])
rows = [torch.tensor(0) for _ in range(size)]
dist.all_gather(rows, torch.tensor(len(sharded.weights)))
assert sum(rows) == E and sharded.state_dict() == {}
optimizers = [SparseSignSGD([table], lr=0.1, weight_decay=0.5) for table in (whole, sharded)]
batches = [torch.tensor([5, 5, 0, 10, 5, 7]), torch.full((6,), 2), torch.arange(6) + rank % 2]
for step, ids in enumerate(batches):
    ids = (ids + 3 * rank * (step == 0)) % E
    ids = ids.int() if step == 1 else ids
    weight = torch.randn(6, D, generator=torch.Generator().manual_seed(10 * step + rank)).round(decimals=1)
    weight[0] = 0  # weight decay applies to a gradient of 0 too
    for table in (whole, sharded):
        (table(ids) * weight).sum().backward()
    assert torch.equal(sharded.local_weights, whole.local_weights) and torch.equal(sharded.local_ids, ids)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(sharded.weights, whole.weights[local]), step
    assert sharded.local_weights is None
    with torch.no_grad():
        assert torch.equal(sharded(ids), whole.weights[ids.long()]) and sharded.local_weights is None
some = torch.arange(4 if rank else 0)  # processes may request different numbers of rows, even none
assert torch.equal(sharded.eval()(some), whole.weights[some])
assert not torch.equal(whole.weights, torch.randn(E, D, generator=torch.Generator().manual_seed(0)))
(Path(sys.argv[1]) / f"good_{rank}").touch()
dist.destroy_process_group()
"""


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(hrm_kernels.__file__).parents[1])
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes(tmp_path, processes):
    """With four processes, the last one holds two rows, the others three."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun(processes, str(tmp_path / "script.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("good_*"))) == processes


@pytest.mark.slow
def test_the_timing_and_the_file(tmp_path):
    """The script behind the published numbers runs: both exchanges give the same rows, and the file loads again."""
    done = torchrun(2, str(Path(__file__).parent / "sharded_timing.py"), "--rows=999", "--columns=8", "--batch=7")
    assert done.returncode == 0, done.stderr
    assert "all-to-all: update" in done.stdout and "rows of each process loaded" in done.stdout


def test_one_process_needs_no_group():
    whole, sharded = SparseEmbedding(5, 2).train(), ShardedEmbedding(5, 2).train()
    ids = torch.tensor([4, 1, 4, 0])
    for table in (whole, sharded):
        table.weights.copy_(torch.arange(10.0).view(5, 2))
        (table(ids) * torch.tensor([[1.0, -1.0]] * 4)).sum().backward()
        SparseSignSGD([table], lr=0.5).step()
    assert sharded.first_row == 0 and torch.equal(sharded.weights, whole.weights)
    assert not torch.equal(sharded.weights, torch.arange(10.0).view(5, 2))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_identifiers_that_do_not_exist(wrong):
    with pytest.raises(
        IndexError, match=f"2 of 3 identifiers are outside 0 to 4, for example {wrong}; the data and num"
    ):
        ShardedEmbedding(5, 2)(torch.tensor([wrong, 3, wrong]))

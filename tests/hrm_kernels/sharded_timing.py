"""Time look-ups, updates and loading of a sharded table, with all-to-all (as shipped) and with all-gather.

torchrun --nproc-per-node 4 tests/hrm_kernels/sharded_timing.py --rows 1000000 --batch 96 384
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open

from hrm.training.checkpoint import write_table
from hrm.training.distributed import World
from hrm.weights import PUZZLE_EMB
from hrm_kernels.nn import LookUp
from hrm_kernels.optim import SparseSignSGD
from hrm_kernels.sharded_embedding import ShardedEmbedding

REPEATS = 30


class Gathered(ShardedEmbedding):
    """The alternative: every process receives all identifiers and gradients, and ignores rows of other processes."""

    def forward(self, ids):
        everyone = ids.new_empty(self._processes * len(ids))
        dist.all_gather_into_tensor(everyone, ids)
        rows = everyone - self.first_row
        self._mine = (rows >= 0) & (rows < len(self.weights))
        self._rows = rows
        # one block for each process, 0 for rows of others; the received blocks are summed
        blocks = torch.where(self._mine[:, None], self.weights[rows.clamp(0, len(self.weights) - 1)], 0)
        received = torch.empty_like(blocks)
        dist.all_to_all_single(received, blocks)
        return self.keep(LookUp(ids, received.view(self._processes, len(ids), -1).sum(0).requires_grad_()))

    def owned_gradients(self, look_up):
        grads = self.weights.new_empty(len(self._rows), self.weights.shape[1])
        dist.all_gather_into_tensor(grads, look_up.rows.grad)
        return self._rows[self._mine], grads[self._mine]


def timed(function):
    times = []
    for _ in range(REPEATS):
        dist.barrier()
        start = time.perf_counter()
        function()
        dist.barrier()
        times.append(1e3 * (time.perf_counter() - start))
    return f"{statistics.median(times):.2f} ms (minimum {min(times):.2f})"


def resident():
    """MiB of memory that this process does not share: what it allocated and wrote."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) // 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[96, 384])
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, size = dist.get_rank(), dist.get_world_size()
    world = World(rank, size, torch.device("cpu"), dist.new_group(backend="gloo"))

    def report(text):
        if rank == 0:
            print(text, flush=True)

    before = resident()
    results = {}
    for batch in arguments.batch:
        ids = torch.randint(arguments.rows, (batch,), generator=torch.Generator().manual_seed(rank))
        for kind in (ShardedEmbedding, Gathered):
            table = kind(arguments.rows, arguments.columns).train()
            optimizer = SparseSignSGD([table], lr=0.01)
            for _ in range(2):
                (table(ids) * torch.linspace(-1, 1, arguments.columns)).sum().backward()
                optimizer.step()
            results.setdefault(batch, []).append(table(ids).detach().clone())
            table.local_weights.grad = torch.ones(batch, arguments.columns)
            name = "all-to-all" if kind is ShardedEmbedding else "all-gather"
            report(f"{size} processes, {batch} rows each, {name}: look-up {timed(lambda t=table, i=ids: t(i))}")
            table(ids)
            table.local_weights.grad = torch.ones(batch, arguments.columns)
            report(f"{size} processes, {batch} rows each, {name}: update {timed(optimizer.step)}")
            del table, optimizer
        assert torch.equal(*results[batch])
    table = ShardedEmbedding(arguments.rows, arguments.columns)
    table.weights += rank + 1
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        dist.broadcast_object_list(shared)
        start = time.perf_counter()
        path = write_table(Path(shared[0]), table, world)
        report(f"written {path.stat().st_size / 2**30:.2f} GiB in {time.perf_counter() - start:.2f} s")
        dist.barrier()
        start = time.perf_counter()
        with safe_open(path, framework="pt") as opened:
            rows = opened.get_slice(PUZZLE_EMB)[table.first_row : table.first_row + len(table.weights)]
        table.weights.copy_(rows)
        dist.barrier()
        report(f"rows of each process loaded in {time.perf_counter() - start:.2f} s")
        assert table.weights.eq(rank + 1).all()
        del rows
        dist.barrier()
        report(f"allocated by process 0: {resident() - before} MiB, of which its rows {table.weights.nbytes >> 20} MiB")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""The layers and AdamATan2 in a bare loop: two processes, autocast, gradient accumulation, torch.compile, checkpoints.

A model learns to sort eight digits. Run it: python examples/ddp_loop.py [--compile inductor]
"""

import argparse
import contextlib
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

from hrm_kernels import stablemax_cross_entropy
from hrm_kernels.nn import ReasoningModule, rope_tables
from hrm_kernels.optim import AdamATan2

PROCESSES, ACCUMULATED, STEPS = 2, 2, 60


class Sorter(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, width), nn.Linear(width, 10, bias=False)
        self.level = ReasoningModule(num_layers=1, hidden_size=width, num_heads=2)
        cos, sin = rope_tables(positions=8, head_dim=width // 2)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, digits):
        x = self.embed(digits)
        for _ in range(2):
            x = self.level(x, x, self.cos, self.sin)
        return self.head(x)


def loss_of(model, digits):
    return stablemax_cross_entropy(model(digits), digits.sort(-1).values).mean()


def work(rank, rendezvous, folder, backend):
    torch.manual_seed(0)  # DistributedDataParallel sends the parameters of process 0 anyway
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=PROCESSES)
    sorter = Sorter()
    model = DistributedDataParallel(torch.compile(sorter, backend=backend) if backend else sorter)
    optimizer = AdamATan2(sorter.parameters(), lr=3e-3, weight_decay=0.1)
    draws, losses = torch.Generator().manual_seed(rank), []
    for step in range(STEPS):
        for part in range(ACCUMULATED):
            digits = torch.randint(10, (32, 8), generator=draws)
            last = part == ACCUMULATED - 1  # only then gradients travel between the processes
            with contextlib.nullcontext() if last else model.no_sync(), torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, digits) / ACCUMULATED
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(ACCUMULATED * loss.item())
        if rank == 0 and step % 20 == 19:
            print(f"step {step + 1}: loss {losses[-1]:.3f}")
    assert losses[-1] < 0.6 * losses[0]

    weights, state = get_state_dict(sorter, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)

    again = Sorter()
    again_optimizer = AdamATan2(again.parameters(), lr=3e-3, weight_decay=0.1)
    weights, state = get_state_dict(again, again_optimizer)  # dcp.load writes into these
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(again, again_optimizer, model_state_dict=weights, optim_state_dict=state)
    digits = torch.randint(10, (32, 8), generator=draws)
    for one, its_optimizer in ((sorter, optimizer), (again, again_optimizer)):
        loss_of(one, digits).backward()
        its_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(sorter.parameters(), again.parameters()))
    if rank == 0:
        print("the loaded checkpoint goes on exactly like the original")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile", help="a backend of torch.compile, such as inductor")
    backend = parser.parse_args().compile
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (f"{folder}/rendezvous", f"{folder}/checkpoint", backend), nprocs=PROCESSES)

"""One segment of the published 27M model without gradients: embedding, six module updates, heads."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import published
from bench.bench_ops import LONG, SHORT
from bench.suite import Setup
from bench.workloads import LAYERS, MULTIPLY_ADDS, D, Workload, block_operations, trainer
from hrm.model import HRM, Batch, Carry

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
        lambda device, dtype, seed: _arguments(device, dtype, B, S),
        ours,
        bytes=moved,
        operations=PASSES * block_operations(B * S, S),
        graph=False,
        kind="segment",
        size=(B, S),
        plain=plain,
        widen=lambda a: (published.in_float64(a[0]), published.carry_in_float64(a[1]), a[2]),
    )


def _arguments(device: str, dtype: torch.dtype, B: int, S: int) -> tuple[Any, ...]:
    model, _, state = trainer(device, dtype, B, S, LAYERS)
    torch.nn.init.trunc_normal_(model.inner.q_head.weight, std=D**-0.5)  # (training starts from 0)
    return model.eval(), state["carry"], state["batch"]


def ours(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    return _results(*model(carry, batch))


def plain(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    return _results(*published.forward(model, carry, batch))


def _results(carry: Carry, outputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    q = torch.cat((outputs["q_halt_logits"], outputs["q_continue_logits"]))
    return [outputs["logits"], q, carry.z_H, carry.z_L]


def test_segment(record: Callable[[], None]) -> None:
    record()

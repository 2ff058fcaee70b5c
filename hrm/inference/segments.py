"""Running a model segment by segment with fixed weights, for evaluation and for the engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import nn

from hrm.act import prefers_halting
from hrm.errors import InputError
from hrm.model import HRM, Batch, Carry
from hrm_kernels.backends import independent_rows
from hrm_kernels.casts import FrozenWeights


@dataclass(frozen=True)
class Segment:
    """A batch after one segment.

    Attributes:
        step: number of segments so far, from 1.
        carry, outputs: the model's; no row of the carry is halted.
        tokens: ``[B, seq_len]`` int64, the most likely answer.
        halts: ``[B]`` bool, the rows that halt here by Q: the first segment with q_halt > q_continue, or the last one.
    """

    step: int
    carry: Carry
    outputs: dict[str, torch.Tensor]
    tokens: torch.Tensor
    halts: torch.Tensor


@torch.no_grad()  # not inference_mode: the model may cache tensors that a later training step uses
def segments(model: HRM, batch: Batch, max_steps: int) -> Iterator[Segment]:
    """Run ``max_steps`` segments of a new ``batch``, every row through all of them.

    The weights must not change meanwhile. ``max_steps`` may exceed the model's ``halt_max_steps``: more segments than
    in training.
    """
    carry = model.initial_carry(batch)
    running, weights = torch.ones_like(carry.halted), FrozenWeights()
    for step in range(1, max_steps + 1):
        with weights, independent_rows():  # no answer depends on the size of the batch
            carry, outputs = model(carry, batch)
        # The model halts rows at its own limit, and would start a halted row again.
        carry = replace(carry, halted=torch.zeros_like(carry.halted))
        halts = running
        if step < max_steps:
            halts = running & prefers_halting(outputs["q_halt_logits"], outputs["q_continue_logits"])
        running = running & ~halts
        yield Segment(step, carry, outputs, outputs["logits"].argmax(-1), halts)


Modes = list[tuple[nn.Module, bool]]
"""Each module of a model, and whether it is in training mode."""


def modes_of(model: nn.Module) -> Modes:
    """The modes of a model's modules, for :func:`restore_modes`."""
    return [(module, module.training) for module in model.modules()]


def restore_modes(modes: Modes) -> None:
    """Put each module back into its mode."""
    for module, training in modes:
        module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode, and restore the modes of its modules at the end."""
    modes = modes_of(model)
    model.eval()
    try:
        yield
    finally:
        restore_modes(modes)


def require_positive(**values: int | None) -> None:
    """
    Raises:
        InputError: a value is neither None nor an integer of 1 or more.
    """
    for name, value in values.items():
        if isinstance(value, bool) or value is not None and not isinstance(value, Integral):
            raise InputError(f"{name} is {value!r}, expected an integer, 1 or more")
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, expected 1 or more")

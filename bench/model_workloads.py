"""Workloads of whole models: a segment, an answer, a training step; and the published code after ``patch``."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import hrm_kernels
from bench import models, published, published_modules
from bench.costs import segment_cost, training_step_cost
from bench.sizes import SEGMENTS, Size
from bench.workload import Workload
from hrm.losses import act_loss
from hrm.model import HRM, Batch, Carry
from hrm_kernels.backends import use_backend
from hrm_kernels.spec import Cost

Make = Callable[[str, torch.dtype], tuple[HRM, Batch]]
"""Makes a model and a batch for it, from a device and a dtype of the activations."""


def segment_of(name: str, make: Make, **options: Any) -> Workload:
    """One segment without gradients; ``options`` are other fields of :class:`Workload`."""
    return Workload(
        name,
        lambda device, dtype, seed: models.inference_arguments(*make(device, dtype)),
        models.segment,
        is_capturable=False,
        kind="segment",
        eager=models.eager_segment,
        to_float64=models.inference_in_float64,
        **options,
    )


def training_step_of(name: str, make: Make, as_graph: bool = False, **options: Any) -> Workload:
    """A whole training step: refill, segment, Q target, loss, backward, both optimisers."""
    return Workload(
        name,
        lambda device, dtype, seed: models.training_arguments(*make(device, dtype)),
        models.graphed_training_step if as_graph else models.training_step,
        is_capturable=False,
        is_checked=not as_graph,  # a graph returns only its loss
        is_stateful=True,
        kind="training step",
        eager=models.eager_training_step,
        to_float64=models.training_in_float64,
        compile_inner=lambda compiler: partial(models.eager_training_step, forward=compiler(published.forward)),
        **options,
    )


def segment(size: Size, itemsize: int) -> Workload:
    """One segment of the published 27M model: embedding, six module updates, heads."""
    return segment_of(
        f"segment {size.batch} x {size.positions}",
        partial(models.published_model, size),
        cost=segment_cost(size, itemsize),
        batch=size.batch,
        positions=size.positions,
    )


def answer(size: Size) -> Workload:
    """All segments of an answer; its first segment is checked."""
    return Workload(
        "Sudoku answer",
        lambda device, dtype, seed: models.inference_arguments(*models.published_model(size, device, dtype)),
        models.segment,
        cost=Cost(0, SEGMENTS * size.segment_passes * size.block_operations),
        is_compiled=False,
        eager=models.eager_segment,
        to_float64=models.inference_in_float64,
        variants={"all segments": models.answer},
    )


def training_step(size: Size, itemsize: int, as_graph: bool = False) -> Workload:
    """A whole training step of the published 27M model."""
    return training_step_of(
        f"training step {size.batch} x {size.positions}{', one graph' if as_graph else ''}",
        partial(models.published_model, size),
        as_graph,
        cost=training_step_cost(size, itemsize),
        batch=size.batch,
        positions=size.positions,
    )


def patched(name: str, make: Make, training: bool) -> Workload:
    """The published code after ``hrm_kernels.patch``; ``eager`` is the same code without it.

    In evaluation one segment, in training forward, loss and backward of one step. The optimiser is left out: ``patch``
    does not change it.
    """

    def arguments(device: str, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
        plain, batch = make(device, dtype)
        plain, carry, batch = models.inference_arguments(plain, batch)
        inner, eps = plain.inner, plain.config.rms_norm_eps
        for level in ("H_level", "L_level"):
            if hasattr(inner, level):
                setattr(inner, level, published_modules.Level(getattr(inner, level), eps))
        patched = copy.deepcopy(plain)
        for one in (plain, patched):
            one.train(training)
        report = hrm_kernels.patch(patched.inner.L_level)
        if hasattr(inner, "H_level"):
            hrm_kernels.patch(patched.inner.H_level)
        if not report.replaced:
            raise RuntimeError(f"patch kept every module: {report}")
        return plain, patched, carry, batch

    def to_float64(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        plain, _, carry, batch = arguments
        return published.in_float64(plain), None, published.carry_in_float64(carry), batch

    run = _training_gradients if training else _published_segment
    return Workload(
        name,
        arguments,
        lambda plain, patched, carry, batch: run(patched, carry, batch),
        is_capturable=False,
        is_compiled=False,
        kind="patched",
        eager=lambda plain, patched, carry, batch: run(plain, carry, batch),
        to_float64=to_float64,
    )


def _published_segment(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    return models.results(*published.forward(model, carry, batch, published_modules.update))


def _training_gradients(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    """The loss of one training call, and every gradient."""
    with torch.enable_grad():
        model.zero_grad(set_to_none=True)
        ended, outputs = published.forward(model, carry, batch, published_modules.update)
        with use_backend("reference"):
            loss = act_loss(ended, outputs)[0] / len(batch["inputs"])
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

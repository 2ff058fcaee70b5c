"""The published model at work: a segment, an answer, a training step; and the same in plain PyTorch and in float64."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from bench import published
from bench.sizes import SEGMENTS, Size
from hrm.config import HRMConfig
from hrm.losses import act_loss
from hrm.model import HRM, Batch, Carry
from hrm.step_graph import CudaCapture, StepGraph
from hrm.training.step import Update, train_step
from hrm_kernels.backends import use_backend
from hrm_kernels.casts import FrozenWeights
from hrm_kernels.optim import AdamATan2, SparseSignSGD

IDENTIFIERS = 1000


def published_model(size: Size, device: str, dtype: torch.dtype) -> tuple[HRM, Batch]:
    """A published Sudoku model with random weights, and a batch for it."""
    torch.manual_seed(0)
    config = HRMConfig.parse(
        {
            "seq_len": size.positions - 1,
            "vocab_size": size.vocabulary,
            "num_puzzle_identifiers": IDENTIFIERS,
            "puzzle_emb_ndim": size.width,
            "H_layers": size.layers,
            "L_layers": size.layers,
            "forward_dtype": str(dtype).removeprefix("torch."),
        }
    )
    model = HRM(config).to(device)
    shape = size.batch, size.positions - 1
    batch = {
        "inputs": torch.randint(0, size.vocabulary, shape, device=device),
        "labels": torch.randint(0, size.vocabulary, shape, device=device),
        "puzzle_identifiers": torch.randint(0, IDENTIFIERS, (size.batch,), device=device),
    }
    return model, batch


# Inference


def inference_arguments(size: Size, device: str, dtype: torch.dtype) -> tuple[HRM, Carry, Batch]:
    """The model in evaluation mode, a carry whose rows have all halted, and a batch."""
    model, batch = published_model(size, device, dtype)
    carry = model.initial_carry(batch)
    torch.nn.init.trunc_normal_(model.inner.q_head.weight, std=size.width**-0.5)  # training starts from 0
    return model.eval(), carry, batch


def segment(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    """One segment: logits, Q values, states."""
    return _results(*model(carry, batch))


def eager_segment(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    """The same in plain PyTorch."""
    return _results(*published.forward(model, carry, batch))


def inference_in_float64(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What :func:`inference_arguments` returns, for :func:`eager_segment` in float64."""
    model, carry, batch = arguments
    return published.in_float64(model), published.carry_in_float64(carry), batch


_frozen: "WeakKeyDictionary[HRM, FrozenWeights]" = WeakKeyDictionary()  # by model, as in an engine


def answer(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    """All segments of an answer, as published; as a CUDA graph this is what an engine runs on the device."""
    with _frozen.setdefault(model, FrozenWeights()):
        for _ in range(SEGMENTS):
            carry, outputs = model(carry, batch)
    return _results(carry, outputs)


def _results(carry: Carry, outputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    q = torch.cat((outputs["q_halt_logits"], outputs["q_continue_logits"]))
    return [outputs["logits"], q, carry.z_H, carry.z_L]


# Training


def training_arguments(size: Size, device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """The model in training mode, its optimisers, and a state: ``carry`` and ``batch``."""
    model, batch = published_model(size, device, dtype)
    model.train()
    dense = AdamATan2(model.parameters(), lr=1e-4, weight_decay=0.1, capturable=device != "cpu")
    dense.keep_copies(dtype)
    assert model.puzzle_emb is not None
    optimizers = [dense, SparseSignSGD([model.puzzle_emb], lr=1e-4)]
    return model, optimizers, {"carry": model.initial_carry(batch), "batch": batch}


def training_step(
    model: HRM,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    forward: Callable[..., Any] | None = None,
) -> list[torch.Tensor]:
    """Take a step of the trainer, without its metrics; return the loss and the gradients that the step used.

    Args:
        forward: replaces the forward pass of the model.
    """

    def compute_loss() -> tuple[torch.Tensor, Carry]:
        carry, outputs = (forward or type(model).__call__)(model, state["carry"], state["batch"])
        return act_loss(carry, outputs)[0], carry

    with torch.enable_grad():
        loss, state["carry"] = train_step(compute_loss, Update(optimizers, len(state["batch"]["inputs"])))
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


def eager_training_step(
    model: HRM,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    forward: Callable[..., Any] = published.forward,
) -> list[torch.Tensor]:
    """The same in plain PyTorch; ``forward`` may be a compiled :func:`bench.published.forward`."""
    for optimizer in optimizers:
        getattr(optimizer, "copies", {}).clear()  # casts happen where weights are used
    with use_backend("reference"):
        return training_step(model, optimizers, state, forward)


def training_in_float64(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What :func:`training_arguments` returns, for :func:`eager_training_step` in float64, without optimisers."""
    model, _, state = arguments
    return published.in_float64(model), [], {**state, "carry": published.carry_in_float64(state["carry"])}


def graphed_training_step(model: HRM, optimizers: list[torch.optim.Optimizer], state: dict[str, Any]) -> torch.Tensor:
    """The loss of a step that runs as one CUDA graph, as in ``hrm.training``; on a CPU, without a graph."""
    carry, device = state["carry"], state["batch"]["inputs"].device
    if device.type == "cpu":
        return training_step(model, optimizers, state)[0]
    if "graph" not in state:
        state["loss"] = torch.zeros((), device=device)

        def step(batch: Batch) -> None:
            captured = {"carry": carry, "batch": batch}
            state["loss"].copy_(training_step(model, optimizers, captured)[0])
            carry.copy_(captured["carry"])

        state["graph"] = StepGraph(step, CudaCapture(device, "pytest bench -k 'not train'"), device)
    state["graph"](state["batch"])
    return state["loss"].clone()

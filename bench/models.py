"""The published model at work: a segment, an answer, a training step; and the same in plain PyTorch and in float64."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from bench import published
from bench.sizes import SEGMENTS, Size
from hrm.config import HRMConfig, ModelConfig
from hrm.families import build
from hrm.losses import act_loss
from hrm.model import HRM, Batch, Carry
from hrm.step_graph import CudaCapture, StepGraph
from hrm.training.step import Update, train_step
from hrm_kernels.backends import use_backend
from hrm_kernels.casts import FrozenWeights
from hrm_kernels.optim import AdamATan2, SparseSignSGD

IDENTIFIERS = 1000


def random_model(config: ModelConfig, rows: int, device: str) -> tuple[HRM, Batch]:
    """A model with random weights, and a batch of ``rows`` rows for it."""
    torch.manual_seed(0)
    model = build(config).to(device)
    shape = rows, config.seq_len
    batch = {
        "inputs": torch.randint(0, config.vocab_size, shape, device=device),
        "labels": torch.randint(0, config.vocab_size, shape, device=device),
        "puzzle_identifiers": torch.randint(0, config.num_puzzle_identifiers, (rows,), device=device),
    }
    return model, batch


def published_model(size: Size, device: str, dtype: torch.dtype) -> tuple[HRM, Batch]:
    """A published Sudoku model with random weights, and a batch for it."""
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
    return random_model(config, size.batch, device)


# Inference


def inference_arguments(model: HRM, batch: Batch) -> tuple[HRM, Carry, Batch]:
    """The model in evaluation mode, a carry whose rows have all halted, and a batch."""
    carry = model.initial_carry(batch)
    torch.nn.init.trunc_normal_(model.inner.q_head.weight, std=model.config.hidden_size**-0.5)  # training starts from 0
    return model.eval(), carry, batch


def segment(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    """One segment: logits, Q values, states."""
    return results(*model(carry, batch))


def eager_segment(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
    """The same in plain PyTorch."""
    return results(*published.forward(model, carry, batch))


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
    return results(carry, outputs)


def results(carry: Carry, outputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    q = torch.stack((outputs["q_halt_logits"], outputs["q_continue_logits"]), -1)
    return [outputs["logits"], q, carry.z_H, carry.z_L]


# Training


def training_arguments(model: HRM, batch: Batch) -> tuple[Any, ...]:
    """The model in training mode, its optimisers, and a state: ``carry`` and ``batch``."""
    model.train()
    is_capturable = batch["inputs"].device.type != "cpu"
    dense = AdamATan2(model.parameters(), lr=1e-4, weight_decay=0.1, capturable=is_capturable)
    dense.keep_copies(model.config.dtype)
    tables = [] if model.puzzle_emb is None else [model.puzzle_emb]
    optimizers = [dense, *(SparseSignSGD([table], lr=1e-4) for table in tables)]
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

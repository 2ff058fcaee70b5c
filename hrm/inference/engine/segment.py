"""One segment for all slots of a batch, on the model's device."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from hrm.errors import InputError
from hrm.inference.engine.puzzles import Puzzle
from hrm.model import HRM, Carry
from hrm.sizes import host_memory
from hrm.step_graph import CudaCapture, StepGraph
from hrm_kernels.casts import FrozenWeights, refresh
from hrm_kernels.graphs import capturable


class Answers(NamedTuple):
    """The outputs of a segment, on the host.

    Attributes:
        tokens: a function: for the requested rows ``[rows, seq_len]`` integers, the most likely ones.
        q_halt, q_continue: ``[slots]`` float32.
    """

    tokens: Callable[[list[int] | slice], np.ndarray]
    q_halt: torch.Tensor
    q_continue: torch.Tensor


class SegmentRunner:
    """The carry of a batch, and buffers for its puzzles and answers.

    On a CPU a segment is a call of the model; on a GPU it is one CUDA graph with its copies.

    Args:
        model: in evaluation mode; its weights do not change while puzzles run.
        slots: rows of the batch.
    """

    def __init__(self, model: HRM, slots: int) -> None:
        self._model = model
        config = model.config
        self._device = next(model.parameters()).device
        on_gpu = self._device.type == "cuda"
        self._host = {
            "inputs": torch.zeros(slots, config.seq_len, dtype=torch.int32, device="cpu", pin_memory=on_gpu),
            "puzzle_identifiers": torch.zeros(slots, dtype=torch.int32, device="cpu", pin_memory=on_gpu),
            # rows that start; the limit of segments is the engine's, not the model's
            "halted": torch.zeros(slots, dtype=torch.bool, device="cpu", pin_memory=on_gpu),
        }
        self._inputs, self._identifiers, self._starts = (values.numpy() for values in self._host.values())  # views
        self._new: list[tuple[int, Puzzle]] = []
        self._any_starts = False
        self._carry = model.initial_carry(
            {name: values.to(self._device) for name, values in self._host.items() if name != "halted"}
        )
        self._answers = torch.zeros(slots, config.seq_len + 2, dtype=torch.int32, device=self._device)
        self._graph = segment_graph(self._answers, self._run_in_place)
        self._weights = FrozenWeights()

    def start(self, row: int, puzzle: Puzzle) -> None:
        """Start ``puzzle`` in ``row`` with the next segment."""
        self._inputs[row] = puzzle.inputs
        self._identifiers[row] = puzzle.identifier
        self._new.append((row, puzzle))

    def run(self) -> Answers:
        """Run one segment."""
        self._mark_new_rows()
        if self._graph is not None:
            self._graph(self._host)
        elif self._device.type == "cpu":
            self._carry, outputs = self._call(self._carry, self._host)
            logits = outputs["logits"]
            return Answers(
                lambda rows: logits[rows].argmax(-1).numpy(), outputs["q_halt_logits"], outputs["q_continue_logits"]
            )
        else:
            self._run_in_place(
                {name: values.to(self._device, non_blocking=True) for name, values in self._host.items()}
            )
        host = self._answers.to("cpu", copy=True)  # one copy and one wait, also for the copies to the device
        q_halt, q_continue = host[:, -2:].view(torch.float32).unbind(1)
        return Answers(lambda rows: host[rows, :-2].numpy(), q_halt, q_continue)

    def _run_in_place(self, inputs: dict[str, torch.Tensor]) -> None:
        """One segment on the device, for a graph: its results overwrite those of the segment before."""
        new, outputs = self._call(self._carry, inputs)
        for name in ("z_H", "z_L", "steps"):
            getattr(self._carry, name).copy_(getattr(new, name))
        for name, values in new.current_data.items():
            self._carry.current_data[name].copy_(values)
        q = [outputs[name].view(torch.int32).unsqueeze(1) for name in ("q_halt_logits", "q_continue_logits")]
        self._answers.copy_(torch.cat([outputs["logits"].argmax(-1).int(), *q], 1))

    def _call(self, carry: Carry, inputs: dict[str, torch.Tensor]) -> tuple[Carry, dict[str, torch.Tensor]]:
        batch = {name: values for name, values in inputs.items() if name != "halted"}
        with self._weights:
            return self._model(replace(carry, halted=inputs["halted"]), batch)

    def _mark_new_rows(self) -> None:
        if self._any_starts:
            self._starts[:] = False
            self._any_starts = False
        if self._new:
            self._any_starts = True
            for row, puzzle in self._new:
                if puzzle.noise:
                    self._start_with_noise(row, puzzle)
                else:
                    self._starts[row] = True
            self._new = []
            if self._graph is not None:  # it reads copies of the weights, and the weights may have changed
                self._weights.refresh()
                refresh(self._model.parameters())

    def _start_with_noise(self, row: int, puzzle: Puzzle) -> None:
        """Start a row as the model does, but from noisy states."""
        inner = self._model.inner
        options: Any = {"generator": torch.Generator("cpu").manual_seed(puzzle.seed), "device": "cpu"}
        for state, start in ((self._carry.z_H, inner.H_init), (self._carry.z_L, inner.L_init)):
            noise = torch.randn(state.shape[1:], dtype=torch.float32, **options) * puzzle.noise
            state[row] = start + noise.to(start)
        self._carry.steps[row] = 0
        for name, values in self._carry.current_data.items():
            values[row] = self._host[name][row]


def segment_graph(answers: torch.Tensor, step: Callable[[dict[str, torch.Tensor]], None]) -> StepGraph | None:
    """``step`` as one CUDA graph; None without a GPU, or with ``HRM_KERNELS_GRAPHS=0``."""
    if not capturable(answers):
        return None
    return StepGraph(step, CudaCapture(answers.device, "HRM_KERNELS_GRAPHS=0 in the environment"), answers.device)


def require_memory_for(model: HRM, slots: int) -> None:
    """
    Raises:
        InputError: the states and logits of ``slots`` puzzles exceed all memory of the model's device.
    """
    config, device = model.config, next(model.parameters()).device
    words = 4 * config.positions * config.hidden_size + config.seq_len * config.vocab_size  # both states, twice; logits
    each = words * config.dtype.itemsize
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else host_memory()
    if memory is not None and slots * each > memory:
        raise InputError(
            f"slots is {slots}: their states and logits take {slots * each >> 20} MiB, and {device} has "
            f"{memory >> 20}; at most {memory // each} fit"
        )

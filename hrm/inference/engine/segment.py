"""One segment for all slots of a batch, on the model's device."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from hrm.errors import InputError
from hrm.inference.engine.trajectories import RunningTrajectory
from hrm.model import HRM, Carry
from hrm.sizes import host_memory
from hrm.step_graph import CudaCapture, StepGraph
from hrm_kernels.casts import FrozenWeights, refresh
from hrm_kernels.graphs import capturable
from hrm_kernels.noise import INITIAL_H, INITIAL_L, TRAJECTORY, noise

_BATCH = ("inputs", "puzzle_identifiers")


class Answers(NamedTuple):
    """The outputs of a segment, on the host.

    Attributes:
        tokens: a function: for the requested rows ``[rows, seq_len]`` integers, the most likely ones.
        q_halt, q_continue: ``[slots]`` float32.
        residual: ``[slots]`` float32 (:func:`residual`); None if it is not measured.
    """

    tokens: Callable[[list[int] | slice], np.ndarray]
    q_halt: torch.Tensor
    q_continue: torch.Tensor
    residual: torch.Tensor | None


def residual(change: torch.Tensor) -> torch.Tensor:
    """How much a segment changes the states of each row, ``[B]`` float32, from a model's ``change [B, 2]``.

    The root mean square of the change, over both states, all positions and features, relative to that of the new states
    (which is 1 for models with post-norm blocks). It is that of the whole way, whatever share of it the states go.
    """
    changed, new = change.float().unbind(1)
    return (changed / new.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()


def disturbed(carry: Carry, scales: torch.Tensor, seeds: torch.Tensor) -> Carry:
    """The carry with normal noise added to both states, other numbers for each row and segment.

    Args:
        carry: its ``steps`` number the segments.
        scales: ``[B]`` float32 standard deviations; a row with 0 keeps its states.
        seeds: ``[B]`` int64.
    """
    _, positions, features = carry.z_H.shape
    numbers = noise(seeds, carry.steps, positions, 2 * features, TRAJECTORY) * scales.view(-1, 1, 1)
    for_H, for_L = numbers.split(features, 2)
    for_L = for_L[:, : carry.z_L.shape[1]]  # a model with one state has a z_L without positions
    return replace(carry, z_H=(carry.z_H + for_H).to(carry.z_H), z_L=(carry.z_L + for_L).to(carry.z_L))


class SegmentRunner:
    """The carry of a batch, and buffers for its puzzles and answers.

    On a CPU a segment is a call of the model; on a GPU it is one CUDA graph with its copies.

    Args:
        model: in evaluation mode; its weights do not change while puzzles run.
        slots: rows of the batch.
        has_noise: whether trajectories may have noise before each segment.
        measures_residual: whether answers have residuals.
        damps: whether segments go only part of the way, by :attr:`weights`.

    Attributes:
        weights: ``[slots]`` float32, how far the next segment moves each row; ``[0]`` without damping.
    """

    def __init__(self, model: HRM, slots: int, has_noise: bool, measures_residual: bool, damps: bool = False) -> None:
        self._model, self._has_noise, self._measures_residual = model, has_noise, measures_residual
        config = model.config
        self._device = next(model.parameters()).device
        on_gpu = self._device.type == "cuda"
        self._host = {
            "inputs": torch.zeros(slots, config.seq_len, dtype=torch.int32, device="cpu", pin_memory=on_gpu),
            "puzzle_identifiers": torch.zeros(slots, dtype=torch.int32, device="cpu", pin_memory=on_gpu),
            # rows that start; the limit of segments is the engine's, not the model's
            "halted": torch.zeros(slots, dtype=torch.bool, device="cpu", pin_memory=on_gpu),
        }
        if has_noise:
            self._host["scales"] = torch.zeros(slots, dtype=torch.float32, device="cpu", pin_memory=on_gpu)
            self._host["seeds"] = torch.zeros(slots, dtype=torch.int64, device="cpu", pin_memory=on_gpu)
        if damps:
            self._host["weights"] = torch.ones(slots, dtype=torch.float32, device="cpu", pin_memory=on_gpu)
        self._views = {name: values.numpy() for name, values in self._host.items()}
        self._inputs, self._identifiers, self._starts = (self._views[name] for name in (*_BATCH, "halted"))
        self.weights: np.ndarray = self._views["weights"] if damps else np.zeros(0, np.float32)
        self._new: list[tuple[int, RunningTrajectory]] = []
        self._any_starts = False
        self._carry = model.initial_carry(
            {name: values.to(self._device) for name, values in self._host.items() if name in _BATCH}
        )
        # tokens, and as bits q_halt, q_continue and the residual
        self._answers = torch.zeros(slots, config.seq_len + 3, dtype=torch.int32, device=self._device)
        self._graph = segment_graph(self._answers, self._run_in_place)
        self._weights = FrozenWeights()

    def start(self, row: int, running: RunningTrajectory) -> None:
        """Start a trajectory in ``row`` with the next segment."""
        self._inputs[row] = running.inputs
        self._identifiers[row] = running.job.puzzle.identifier
        if self._has_noise:
            self._views["scales"][row], self._views["seeds"][row] = running.noise, running.seed
        if self._carry.seeds is not None:
            self._carry.seeds[row] = running.seed
        self._new.append((row, running))

    def run(self) -> Answers:
        """Run one segment."""
        self._mark_new_rows()
        if self._graph is not None:
            self._graph(self._host)
        elif self._device.type == "cpu":
            self._carry, outputs = self._call(self._carry, self._host)
            logits = outputs["logits"]
            return Answers(
                lambda rows: logits[rows].argmax(-1).numpy(),
                outputs["q_halt_logits"],
                outputs["q_continue_logits"],
                residual(outputs["change"]) if self._measures_residual else None,
            )
        else:
            self._run_in_place(
                {name: values.to(self._device, non_blocking=True) for name, values in self._host.items()}
            )
        host = self._answers.to("cpu", copy=True)  # one copy and one wait, also for the copies to the device
        q_halt, q_continue, change = host[:, -3:].view(torch.float32).unbind(1)
        return Answers(
            lambda rows: host[rows, :-3].numpy(), q_halt, q_continue, change if self._measures_residual else None
        )

    def _run_in_place(self, inputs: dict[str, torch.Tensor]) -> None:
        """One segment on the device, for a graph: its results overwrite those of the segment before."""
        new, outputs = self._call(self._carry, inputs)
        for name in ("z_H", "z_L", "steps"):
            getattr(self._carry, name).copy_(getattr(new, name))
        for name, values in new.current_data.items():
            self._carry.current_data[name].copy_(values)
        numbers = [outputs[name] for name in ("q_halt_logits", "q_continue_logits")]
        numbers.append(residual(outputs["change"]) if self._measures_residual else torch.zeros_like(numbers[0]))
        bits = [one.view(torch.int32).unsqueeze(1) for one in numbers]
        self._answers.copy_(torch.cat([outputs["logits"].argmax(-1).int(), *bits], 1))

    def _call(self, carry: Carry, inputs: dict[str, torch.Tensor]) -> tuple[Carry, dict[str, torch.Tensor]]:
        batch = {name: inputs[name] for name in _BATCH}
        if self._has_noise:
            carry = disturbed(carry, inputs["scales"], inputs["seeds"])
        with self._weights:
            carry = replace(carry, halted=inputs["halted"])
            if "weights" in inputs:
                return self._model(carry, batch, weight=inputs["weights"])
            return self._model(carry, batch)

    def _mark_new_rows(self) -> None:
        if self._any_starts:
            self._starts[:] = False
            self._any_starts = False
        if self._new:
            self._any_starts = True
            for row, running in self._new:
                if running.noise or running.start_noise:
                    self._start_from(row, running)
                else:
                    self._starts[row] = True
            self._new = []
            if self._graph is not None:  # it reads copies of the weights, and the weights may have changed
                self._weights.refresh()
                refresh(self._model.parameters())

    def _start_from(self, row: int, running: RunningTrajectory) -> None:
        """Start a row as the model does, but before the segment, so that its states can have noise."""
        seeds = torch.tensor([running.seed], device=self._device)
        states = self._model.inner.initial_states(seeds)
        for state, initial, stream in zip((self._carry.z_H, self._carry.z_L), states, (INITIAL_H, INITIAL_L)):
            if running.start_noise:
                _, positions, features = state.shape
                initial = initial + running.start_noise * noise(seeds, 0, positions, features, stream)
            state[row] = initial[0].to(state)
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

"""Running the steps of a run, launch by launch or as replays of one CUDA graph."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from hrm import act
from hrm.config import ModelConfig
from hrm.step_graph import Capture, CudaCapture, StepGraph
from hrm.training.config import TrainConfig
from hrm.training.distributed import World, gradients_of
from hrm.training.finite import FiniteCheck
from hrm.training.log_sums import LogSums
from hrm.training.schedule import DepthSchedule, at_depth, gradient_mode, learning_rate
from hrm.training.state import TrainingState
from hrm.training.step import Update, segment_loss, train_step
from hrm_kernels.casts import refresh, written


class StepRunner:
    """Runs steps: the host draws a batch and sets the schedules, the device does everything else.

    Nothing in a step waits for the device.

    Args:
        config: the run's configuration.
        world: the processes of the run.
        state: what the steps change.
        sums: the metrics of each step are added to them.
        total_steps: of the learning rate's schedule.
        capture: captures the device's part as a CUDA graph; None runs it launch by launch.

    Attributes:
        finite: notes steps with a number that is not finite.
        lr: learning rate of the last step.
        depth: H_cycles and L_cycles of the last step, by name.
        grad_norm: float32 scalar on the device, norm of the last step's gradients.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        state: TrainingState,
        sums: LogSums,
        total_steps: int,
        capture: Capture | None,
    ):
        self._config, self._world, self._state, self._sums = config, world, state, sums
        self._total_steps = total_steps
        self._gradients = gradients_of(state.model.parameters(), world)
        self._update = Update(
            list(state.optimizers.values()), config.global_batch_size, self._gradients, self._watch_gradients
        )
        self._depths = DepthSchedule(config.depth, state.model.config, total_steps)
        self._depth = self._depths.at(state.step)
        self._graph = StepGraph(self._compute, capture, world.device) if capture else None
        self.finite = FiniteCheck(world.device, state.step)
        self.lr = config.lr
        self.grad_norm = torch.zeros((), dtype=torch.float32, device=world.device)
        if config.compile:
            state.model.compile(dynamic=False)
        else:
            state.adam.keep_copies(state.model.config.dtype)

    def close(self) -> None:
        """Free the graph: NCCL does not end a communicator while a graph with its work exists."""
        if self._graph is not None:
            self._graph.forget()

    @property
    def depth(self) -> dict[str, int]:
        return {"H_cycles": self._depth.H_cycles, "L_cycles": self._depth.L_cycles}

    def run(self) -> None:
        """Run the next step."""
        config, state = self._config, self._state
        state.step += 1
        factor = learning_rate(state.step, 1.0, config.lr_warmup_steps, self._total_steps, config.lr_min_ratio)
        self.lr = config.lr * factor
        self._set_modes()
        inputs = self._draw_inputs()
        with at_depth(state.model, self._depth):
            self._run(inputs, factor)

    def _run(self, inputs: dict[str, Tensor], factor: float) -> None:
        """Run a step on ``inputs`` with ``factor`` times the base learning rates."""
        state = self._state
        if self._graph is None:
            state.set_learning_rates(factor)
            self._compute(self._to_device(inputs))
            return
        inputs["factor"] = torch.tensor(factor, dtype=torch.float64, device="cpu")
        refresh(state.model.parameters())  # an evaluation may have exchanged the weights since the last step
        if self._graph(self._pinned(inputs)):
            self._count_writes()

    def _draw_inputs(self) -> dict[str, Tensor]:
        """Everything that a step takes from the host, on the CPU."""
        state, config = self._state, self._config
        inputs = state.batches.next(state.step)
        inputs["min_steps"] = min_steps(
            state.step, config.seed, config.global_batch_size, state.model.config, self._world
        )
        inputs["step"] = torch.tensor(state.step, dtype=torch.int32, device="cpu")
        return inputs

    def _compute(self, inputs: dict[str, Tensor]) -> None:
        """The device's part of a step; it depends on the host only by ``inputs``."""
        state, batch = self._state, dict(inputs)
        least, factor = batch.pop("min_steps"), batch.pop("factor", None)
        self.finite.step.copy_(batch.pop("step"))
        if factor is not None:
            state.set_learning_rates(factor)
        if state.carry is None:
            state.carry = state.model.initial_carry(batch)
            if state.carry.seeds is not None:
                rows = self._world.own_rows(self._config.global_batch_size)
                state.carry.seeds = row_seeds(self._config.seed, rows).to(state.carry.seeds)
        forward = partial(
            segment_loss, state.model, state.carry, batch, least, self._config.loss, self._config.loss_decay
        )
        loss, (carry, metrics) = train_step(forward, self._update)
        if state.ema:
            state.ema.update()
        self._sums.add(loss, metrics)
        state.keep_carry(carry, in_place=self._graph is not None)

    def _watch_gradients(self, loss: Tensor) -> None:
        self.grad_norm.copy_(self._gradients.norm())
        watched = [loss, self.grad_norm]
        if (table := self._state.model.puzzle_emb) is not None:
            watched += [look_up.rows.grad.norm() for look_up in table.look_ups if look_up.rows.grad is not None]
        self.finite.note_scalars(watched)

    def _set_modes(self) -> None:
        """Set the depth and the updates with gradients of this step."""
        state, before = self._state, (self._depth, self._state.model.inner.gradient)
        self._depth = self._depths.at(state.step)
        state.model.inner.gradient = gradient_mode(state.step, self._config.gradient_warmup, self._depth)
        if self._graph is not None and before != (self._depth, state.model.inner.gradient):
            self._graph.forget()

    def _count_writes(self) -> None:
        """Raise the version counters of what a replay wrote, as PyTorch does for in-place operations."""
        model, copies = self._state.model, self._state.adam.copies
        params: list[Tensor] = list(model.parameters())
        table = [model.puzzle_emb.weights] if model.puzzle_emb is not None else []
        torch.autograd.graph.increment_version([*params, *copies.values(), *table])
        written(params, copies)

    def _pinned(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._world.device.type != "cuda":
            return tensors
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}

    def _to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self._world.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in self._pinned(tensors).items()}


def min_steps(step: int, seed: int, global_batch_size: int, model: ModelConfig, world: World) -> Tensor:
    """Exploration: the fewest segments of each row of this process, ``[rows]``, on the CPU.

    They are drawn for the global batch, so they do not depend on the number of processes.
    """
    seed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = act.draw_min_steps(
        global_batch_size, model.halt_max_steps, model.halt_exploration_prob, generator=generator
    )
    return drawn[world.own_rows(global_batch_size)]


def row_seeds(seed: int, rows: slice) -> Tensor:
    """The first seed of each row of a training batch, ``[rows]`` int64, on the CPU; each row has 2^32 seeds."""
    first = int(np.random.SeedSequence([seed]).generate_state(1, np.uint64).view(np.int64)[0])
    return (torch.arange(rows.start, rows.stop, dtype=torch.int64, device="cpu") << 32) + first


def graph_capture(config: TrainConfig, world: World) -> Capture | None:
    """What captures the steps of a run as a CUDA graph; None if they must run launch by launch."""
    if not config.cuda_graph or config.compile or world.device.type != "cuda":
        return None
    if config.puzzle_emb_sharded:  # the host asks how many rows each process requests
        return None
    if world.size > 1 and config.cuda_graph != "distributed":
        return None
    return CudaCapture(world.device, "cuda_graph=false")

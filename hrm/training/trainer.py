"""The training loop."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hrm import act
from hrm.compatibility import check_fits
from hrm.data.batches import TrainingSampler, rows_per_rank
from hrm.data.fingerprint import fingerprint, names_fingerprint
from hrm.data.format import PuzzleDataset, open_dataset
from hrm.errors import InputError
from hrm.files import write_json
from hrm.inference.evaluate import evaluate
from hrm.inference.metrics import Metrics
from hrm.model import HRM, Carry
from hrm.step_graph import CudaCapture, StepGraph
from hrm.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    copy_into,
    load_optimizer_tensors,
    open_newest,
    optimizer_tensors,
    remove_leftovers,
    write_checkpoint,
    write_table,
)
from hrm.training.config import TrainConfig
from hrm.training.distributed import FlatGradients, World
from hrm.training.ema import EMA
from hrm.training.loggers import Loggers, Reporter
from hrm.training.run_lock import LOCK_FILE, RunLock
from hrm.training.schedule import learning_rate, total_steps
from hrm.training.step import Update, segment_loss, train_step
from hrm.trm import build
from hrm.weights import PUZZLE_EMB, checkpoints, load
from hrm_kernels.casts import refresh, written
from hrm_kernels.fixed_point import Gradient, gradient_steps, warm_up
from hrm_kernels.optim import AdamATan2, SparseSignSGD
from hrm_kernels.sharded_embedding import ShardedEmbedding

Reason = Literal["done", "solved", "limit", "interrupted"]

_PER_ROW = ("lm_loss", "q_halt_loss", "q_continue_loss")
_PER_FINISHED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
_SUMS = ("loss", *_PER_ROW, *_PER_FINISHED, "count")
_NEVER = 2**31 - 1
_EARLY_STOP_ROWS = 10
_FIXED = ("family", "global_batch_size", "ema")  # what a resumed run cannot change, beside the model and the data
_FREE = ("gradient", "recompute")  # of the model, what it can
_PUZZLES, _NAMES = "puzzles", "identifiers"  # fingerprints among what a checkpoint keeps about its data
_UNREMARKABLE = {"arch", "resume", "data", "out"}  # changes that need no note


class TrainingError(InputError):
    """Training cannot go on: a loss, gradient or weight is no longer finite."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        step: steps made since the run began.
        reason: ``done``; ``solved`` (early_stop_exact_accuracy); ``limit`` (max_steps, max_minutes); ``interrupted``.
        checkpoint: the last checkpoint.
        evaluation: metrics of the last evaluation in this start of the run, if there was one.
    """

    step: int
    reason: Reason
    checkpoint: Path
    evaluation: Metrics | None


def train(config: TrainConfig, world: World) -> Result:
    """Train as ``config`` says, from the start or from the newest checkpoint; every process of ``world`` calls this.

    Writes into ``config.out``: ``training.json`` (the configuration), ``metrics.csv``, ``evaluation.csv`` and
    ``checkpoints/``. A run that was stopped and resumed computes what it would have computed without the stop, on a CPU
    bit for bit. SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal, unless it is ignored as under ``nohup``) and a
    standard output that takes no more finish the step and save.

    Raises:
        InputError: data, folder, checkpoint or number of processes don't fit, or another run is in the folder.
        TrainingError: a loss, gradient or weight is not finite.
    """
    trainer = Trainer(config, world)
    try:
        return trainer.run()
    finally:
        trainer.close()


class Trainer:
    """The state of one run; :func:`train` is the way to use it.

    There is no random state to keep: weights are drawn from the seed, batches from the seed and the position in the
    data, exploration from the seed and the step, always for the global batch. Between rows of the log nothing waits for
    the device; on one GPU a step is one replay of a CUDA graph.
    """

    def __init__(self, config: TrainConfig, world: World):
        self._lock = RunLock(config.out)
        try:
            self._set_up(config, world)
        except BaseException:
            self._lock.release()
            raise

    def _set_up(self, config: TrainConfig, world: World) -> None:
        self._opened = time.monotonic()
        dataset = open_dataset(config.data, "train")
        self._test = _test_split(config)
        rows_per_rank(config.global_batch_size, world.size)
        _require_free(config)
        self._reporter = Reporter(quiet=not world.is_main)
        self._reporter.say(f"data {config.data} ({dataset.num_examples:,} examples), run {config.out}")
        self._sampler = TrainingSampler(dataset, config.global_batch_size, config.seed, world.rank, world.size)
        saved = _open_run(config, world, self._lock)
        if saved and config.arch.get("forward_dtype", "auto") == "auto":  # a run keeps its dtype on another device
            arch = config.arch | {"forward_dtype": saved.config["model"]["forward_dtype"]}
            config = config.model_copy(update={"arch": arch})
        self.config, self.world = config, world

        metadata = dataset.metadata
        self._data = metadata.model_dump(mode="json") | {"num_examples": dataset.num_examples}
        sizes = (self._sampler.num_groups, metadata.mean_puzzle_examples, config.global_batch_size)
        self.total_steps = total_steps(config.epochs, *sizes)
        epochs = config.eval_interval
        self._eval_every = total_steps(epochs, *sizes) if epochs and self._test else None

        torch.manual_seed(config.seed)
        self.model = build(config.model(metadata, world.device), config.puzzle_emb_sharded).to(world.device).train()
        if self.model.puzzle_emb is not None:
            self.model.identifiers = names_fingerprint(dataset)
        self._data |= {_PUZZLES: fingerprint(dataset), _NAMES: self.model.identifiers}
        if self._test:
            check_fits(self.model, self._test)
        notes = [self._begin(config.init)] if config.init is not None and not saved else []
        self._graph = _step_graph(config, world, self._compute)
        parameters = list(self.model.parameters())
        self._gradients = FlatGradients(parameters, world)
        self._adam = AdamATan2(
            parameters,
            self._learning_rate(config.lr),
            (config.beta1, config.beta2),
            config.weight_decay,
            capturable=self._graph is not None,
        )
        self._optimizers: dict[str, tuple[AdamATan2 | SparseSignSGD, float]] = {"adam": (self._adam, config.lr)}
        if self.model.puzzle_emb is not None:
            lr, decay = self._learning_rate(config.puzzle_emb_lr), config.puzzle_emb_weight_decay
            sparse = SparseSignSGD([self.model.puzzle_emb], lr, decay)
            self._optimizers["puzzle_emb"] = (sparse, config.puzzle_emb_lr)
        optimizers = [optimizer for optimizer, _ in self._optimizers.values()]
        self._update = Update(optimizers, config.global_batch_size, self._gradients, self._watch)
        self._ema = EMA(self.model, config.ema_rate) if config.ema else None

        self.step, self._lr = 0, config.lr
        self._carry: Carry | None = None
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=world.device)  # since the last row of the log
        self._summed_from = 0
        self._recent: deque[list[float]] = deque(maxlen=_EARLY_STOP_ROWS)  # [finished, exactly right] of the last rows
        self._evaluated_at = -1
        self._seconds, self._row_seconds, self._evaluation_seconds = 0.0, 0.0, 0.0
        if saved:
            notes = self._resume(saved)
        self._saved = saved.path if saved else None
        self._saved_at = self.step if saved else -1
        self._bad_step = torch.tensor(_NEVER, dtype=torch.int32, device=world.device)
        self._number = torch.tensor(self.step, dtype=torch.int32, device=world.device)  # self.step, on the device
        self._grad_norm = torch.zeros((), dtype=torch.float32, device=world.device)
        self._evaluation: Metrics | None = None
        self._interrupted = False
        if config.compile:
            self.model.compile(dynamic=False)
        else:
            self._adam.keep_copies(self.model.config.dtype)

        self.last_step = max(self.step, min(self.total_steps, config.max_steps or self.total_steps))
        self._loggers: Loggers | None = None
        settings = config.model_dump(mode="json")
        self._extra = {"task": metadata.task, "training": settings}
        if world.is_main:
            config.out.mkdir(parents=True, exist_ok=True)
        self._lock.take(world)
        if world.is_main:
            _require_free(config)  # another run may have been here since
            self._loggers = Loggers(config.out, config.logger, settings, self.step, self._summed_from)
            write_json(config.out / "training.json", settings | {"model": self.model.config.model_dump()})
        self._reporter.begin(self.last_step, self.step)
        self._reporter.say(
            f"{sum(p.numel() for p in parameters):,} parameters, {self._sampler.num_groups:,} groups of puzzles, "
            f"{self.total_steps:,} steps of {config.global_batch_size} rows on {world.size} x {world.device.type}"
        )
        for note in notes:
            self._reporter.say(note)
        self._started = time.monotonic()
        self._row_started = self._started - self._row_seconds

    def run(self) -> Result:
        """Train to the end, or to a reason to stop before; save; return how it ended."""
        with self._signals():
            reason = self._loop()
            if reason != "interrupted" and self._eval_every and self._evaluated_at != self.step:
                self._evaluate()
            self._save()  # before the row below, so that a resumed run goes on in the middle of it
            if self.step != self._summed_from:
                self._log(last=True)
        assert self._saved is not None
        return Result(self.step, reason, self._saved, self._evaluation)

    def close(self) -> None:
        """Leave the terminal and the logs in order."""
        self._reporter.close()
        if self._loggers:
            self._loggers.close()
        self._lock.release()

    def _loop(self) -> Reason:
        config, first = self.config, self.step + 1
        while self.step < self.last_step:
            self._train_step()
            if self.step == first:
                self._say_if_slow(time.monotonic() - self._started)
            if self.step % config.log_every == 0:
                self._log(last=self.step == self.last_step)
                if self._is_solved():
                    return "solved"
            if self._eval_every and self.step % self._eval_every == 0:
                self._evaluate()
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self._save()
            interrupted = self._interrupted or self._reporter.lost is not None
            if stop := self.world.highest(2 if interrupted else int(self._is_out_of_time())):
                return "interrupted" if stop == 2 else "limit"
        return "done" if self.step >= self.total_steps else "limit"

    def _is_out_of_time(self) -> bool:
        """Whether max_minutes are over but for an evaluation at the end, which is to take as long as the last one."""
        limit = self.config.max_minutes
        return limit is not None and time.monotonic() - self._opened + self._evaluation_seconds > 60 * limit

    def _say_if_slow(self, seconds: float) -> None:
        """Where the first row of the log is far, say after the first step how far."""
        steps = min(self.config.log_every - self.step % self.config.log_every, self.last_step - self.step)
        if seconds * steps > 5:
            self._reporter.say(f"first step: {seconds:.1f} s; the next line comes after {steps} more (log_every)")

    def _train_step(self) -> None:
        config = self.config
        self.step += 1
        factor = learning_rate(self.step, 1.0, config.lr_warmup_steps, self.total_steps, config.lr_min_ratio)
        self._lr = config.lr * factor
        self._set_gradient(self._gradient_at(self.step))
        inputs = self._sampler.next() | {"min_steps": self._min_steps()}
        inputs["step"] = torch.tensor(self.step, dtype=torch.int32, device="cpu")
        if self._graph is None:
            for optimizer, lr in self._optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = lr * factor
            self._compute(self._to_device(inputs))
            return
        inputs["factor"] = torch.tensor(factor, dtype=torch.float64, device="cpu")
        refresh(self.model.parameters())  # where an evaluation has exchanged the weights in between
        if self._graph(self._pinned(inputs)):
            self._count_writes()

    def _compute(self, inputs: dict[str, Tensor]) -> None:
        """A training step, all of it on the device: nothing here waits for it, or depends on the host's numbers."""
        batch = dict(inputs)
        min_steps, factor = batch.pop("min_steps"), batch.pop("factor", None)
        self._number.copy_(batch.pop("step"))
        if self._carry is None:
            self._carry = self.model.initial_carry(batch)
        if factor is not None:
            for optimizer, lr in self._optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"].copy_(lr * factor)
        before = self._carry
        loss, (carry, metrics) = train_step(
            lambda: segment_loss(self.model, before, batch, min_steps, self.config.loss), self._update
        )
        if self._ema:
            self._ema.update()
        metrics["loss"] = loss
        zero = loss.new_zeros(())
        self._sums += torch.stack([metrics.get(name, zero).double() for name in _SUMS])
        if self._graph is None:
            self._carry = carry
        else:  # a graph finds it by address
            new = _carry_tensors(carry)
            for name, tensor in _carry_tensors(self._carry).items():
                tensor.copy_(new[name])

    def _count_writes(self) -> None:
        """Count what a replay has written as PyTorch counts in-place operations, which a replay does not run."""
        params: list[Tensor] = list(self.model.parameters())
        table = [self.model.puzzle_emb.weights] if self.model.puzzle_emb is not None else []
        torch.autograd.graph.increment_version([*params, *self._adam.copies.values(), *table])
        written(params, self._adam.copies)

    def _gradient_at(self, step: int) -> Gradient:
        """The gradient mode of a step, counted from 1; within the warm-up a number of updates."""
        over, wanted = self.config.gradient_warmup, self.model.config.gradient
        if step > over:
            return wanted
        cycle = [1] * self.model.config.L_cycles + [0]
        steps = self.model.config.H_cycles * len(cycle)
        first, last = (gradient_steps(cycle, steps, mode) for mode in ("one_step", wanted))
        return warm_up(step - 1, over, last, first)

    def _set_gradient(self, gradient: Gradient) -> None:
        if gradient != self.model.inner.gradient:
            self.model.inner.gradient = gradient
            if self._graph is not None:
                self._graph.forget()

    def _learning_rate(self, lr: float) -> float | Tensor:
        """How an optimiser is given it: a graph finds it by address."""
        return lr if self._graph is None else torch.tensor(lr, dtype=torch.float32, device=self.world.device)

    def _pinned(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.world.device.type != "cuda":
            return tensors
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}

    def _to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.world.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in self._pinned(tensors).items()}

    def _min_steps(self) -> Tensor:
        """Exploration of this process's rows, ``[rows]``, on the CPU."""
        config, world, model = self.config, self.world, self.model.config
        seed = int(np.random.SeedSequence([config.seed, self.step]).generate_state(1, np.uint64)[0])
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = act.draw_min_steps(
            config.global_batch_size, model.halt_max_steps, model.halt_exploration_prob, generator=generator
        )
        return drawn.chunk(world.size)[world.rank]

    def _watch(self, loss: Tensor) -> None:
        """Note, on the device, the first step whose loss or gradients are not finite."""
        self._grad_norm.copy_(self._gradients.flat.norm())
        watched = [loss, self._grad_norm]
        if self.model.puzzle_emb is not None:
            found = [look_up.rows.grad for look_up in self.model.puzzle_emb.look_ups]
            watched += [grad.norm() for grad in found if grad is not None]
        self._note_unless(torch.stack([one.float() for one in watched]).isfinite().all())

    def _note_unless(self, good: Tensor) -> None:
        self._bad_step.copy_(torch.where(good, self._bad_step, torch.minimum(self._bad_step, self._number)))

    def _check_finite(self) -> None:
        bad = int(self.world.min_(self._bad_step.clone()).item())
        if bad != _NEVER:
            saved = (
                f"the last good checkpoint is {self._saved}: resume from it with resume=true and a lower lr"
                if self._saved
                else "there is no checkpoint yet: start again with a lower lr or a longer lr_warmup_steps"
            )
            raise TrainingError(f"the loss or a gradient of step {bad} is not finite; nothing of it was saved; {saved}")

    def _log(self, last: bool) -> None:
        """Write the row of the log that ends here, and start the next."""
        self._check_finite()
        steps, now = self.step - self._summed_from, time.monotonic()
        sums = dict(zip(_SUMS, self.world.sum_(self._sums).tolist(), strict=True))
        finished, rows, seconds = sums["count"], steps * self.config.global_batch_size, now - self._row_started
        state = self._sampler.state
        row: dict[str, float | int | None] = {
            "step": self.step,
            "epoch": state["epoch"] + state["position"] / self._sampler.num_groups,
            **{name: sums[name] / rows for name in ("loss", *_PER_ROW)},
            **{name: sums[name] / finished if finished else None for name in _PER_FINISHED},
            "finished": int(finished),
            "lr": self._lr,
            "grad_norm": self._grad_norm.item(),
            "puzzles_per_second": finished / seconds,
            "seconds": self._seconds + now - self._started,
        }
        self._recent.append([finished, sums["exact_accuracy"]])
        if self._loggers:
            with self._room("the log"):
                self._loggers.log("train", row)
        self._reporter.show(row, last)
        self._sums.zero_()
        self._summed_from, self._row_started = self.step, now

    def _is_solved(self) -> bool:
        wanted = self.config.early_stop_exact_accuracy
        finished, exact = (sum(column) for column in zip(*self._recent, strict=True))
        full = len(self._recent) == _EARLY_STOP_ROWS
        return wanted is not None and full and finished > 0 and exact >= wanted * finished

    def _evaluate(self) -> None:
        assert self._test is not None
        started = time.monotonic()
        with self._aside(), self._ema.applied() if self._ema else nullcontext():
            self._evaluation = evaluate(
                self.model,
                self._test,
                batch_size=self.config.global_batch_size,
                max_examples=self.config.eval_max_examples,
                loss_type=self.config.loss,
            )
        self._evaluated_at, self._evaluation_seconds = self.step, time.monotonic() - started
        if self._loggers:
            with self._room("the log"):
                self._loggers.log("eval", {"step": self.step, **self._evaluation.as_dict()})
        named = ("exact_accuracy", "accuracy", "lm_loss")
        text = ", ".join(f"{name} {getattr(self._evaluation, name):.4f}" for name in named)
        self._reporter.say(f"step {self.step}: test {text} ({self._evaluation.count} puzzles)")

    def _save(self) -> None:
        if self._saved_at == self.step:
            return
        with self._aside():
            assert self._carry is not None
            state, table = self.model.state_dict(), self.model.puzzle_emb
            floating = [*state.values(), self._carry.z_H, self._carry.z_L]
            if isinstance(table, ShardedEmbedding):
                floating.append(table.weights)
            self._note_unless(torch.stack([tensor.isfinite().all() for tensor in floating]).all())
            self._check_finite()
            sums = self.world.gather_rows(self._sums[None])
            carry = {name: self.world.gather_rows(tensor) for name, tensor in _carry_tensors(self._carry).items()}
            rows = None
            if isinstance(table, ShardedEmbedding):
                with self._room(f"the checkpoint of step {self.step}"):
                    rows = write_table(self.config.out, table, self.world)
            if self.world.is_main:
                tensors = {f"optimizer_{name}": optimizer_tensors(one) for name, (one, _) in self._optimizers.items()}
                tensors["carry"] = {name: tensor for name, tensor in carry.items() if tensor is not None}
                assert sums is not None
                tensors["log"] = {"sums": sums}
                if self._ema:
                    tensors["ema"] = state | self._ema.averages
                self._write(tensors, rows)
            self.world.barrier()
            self._saved, self._saved_at = checkpoint_path(self.config.out, self.step), self.step

    def _write(self, tensors: dict[str, dict[str, Tensor]], table: Path | None) -> None:
        values = {
            "sampler": self._sampler.state,
            "data": self._data,
            "summed_from": self._summed_from,
            "recent": list(self._recent),
            "evaluated_at": self._evaluated_at,
            "seconds": self._seconds + time.monotonic() - self._started,
            "row_seconds": time.monotonic() - self._row_started,
        }
        config = self.config
        with self._room(f"the checkpoint of step {self.step}"):
            write_checkpoint(config.out, self.step, self.model, tensors, values, self._extra, config.keep, table)

    @contextmanager
    def _room(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            way_out = (
                f"the last good checkpoint is {self._saved}; make room and resume from it with resume=true"
                if self._saved
                else "there is no checkpoint yet; make room and start again"
            )
            raise InputError(
                f"{what} cannot be written in {self.config.out} ({error.strerror or error}); {way_out}"
            ) from error

    def _begin(self, init: str) -> str:
        """Take over the weights that a new run begins with; a note for the user."""
        config = self.model.config
        rows, length = config.num_puzzle_identifiers, config.seq_len
        names = self.model.identifiers
        weights = load(init, "cpu", self.config.puzzle_emb, rows, length, identifiers=names).state_dict()
        if PUZZLE_EMB in weights:
            weights[PUZZLE_EMB] = weights[PUZZLE_EMB][self._own_rows()]
        self._take_over(weights, f"init={init}")
        return f"begins with the weights of {init}"

    def _own_rows(self) -> slice:
        """The rows of the puzzle embedding that this process holds."""
        table = self.model.puzzle_emb
        if not isinstance(table, ShardedEmbedding):
            return slice(None)
        return slice(table.first_row, table.first_row + len(table.weights))

    def _take_over(self, weights: dict[str, Tensor], where: str) -> None:
        own = self.model.state_dict()
        if self.model.puzzle_emb is not None:
            own[PUZZLE_EMB] = self.model.puzzle_emb.weights
        copy_into(own, weights, where)

    def _resume(self, saved: Checkpoint) -> list[str]:
        """Take over what ``saved`` holds; notes for the user on settings that have changed."""
        changed = _check_same_run(saved, self.model, self.config, self._data)
        state, where, device = saved.state, f"checkpoint {saved.path}", self.world.device
        weights = saved.tensors("model")
        if self.model.puzzle_emb is not None:
            weights[PUZZLE_EMB] = saved.table(self._own_rows())
        self._take_over(weights, where)
        for name, (optimizer, _) in self._optimizers.items():
            load_optimizer_tensors(optimizer, saved.tensors(f"optimizer_{name}"))
        if self._ema:
            averages = saved.tensors("ema")
            copy_into(self._ema.averages, {name: averages[name] for name in self._ema.averages}, where)
        rows = self.config.global_batch_size // self.world.size
        mine = slice(self.world.rank * rows, (self.world.rank + 1) * rows)
        carry = {name: tensor.to(device) for name, tensor in saved.tensors("carry", mine).items()}
        data = {name.removeprefix(_DATA): carry.pop(name) for name in list(carry) if name.startswith(_DATA)}
        self._carry = Carry(**carry, current_data=data)
        sums = saved.tensors("log")["sums"].view(-1, len(_SUMS))  # of each process that there was
        if len(sums) == self.world.size:
            self._sums.copy_(sums[self.world.rank])
        elif self.world.is_main:
            self._sums.copy_(sums.sum(0))
        self._sampler.state = state["sampler"]
        self.step, self._summed_from, self._evaluated_at = state["step"], state["summed_from"], state["evaluated_at"]
        self._recent.extend(state["recent"])
        self._seconds, self._row_seconds = state["seconds"], state.get("row_seconds", 0.0)
        return [f"resumed from {saved.path}, step {self.step}", *changed]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Time in here is not counted as training when the log says how fast it is."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._row_started += time.monotonic() - start

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP ask the loop to stop; a second SIGINT stops at once."""
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            yield
            return

        def ask(number: int, frame: object) -> None:
            self._interrupted = True
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.world.is_main:
                with suppress(OSError):  # the terminal may be gone
                    os.write(2, b"\nstopping: this step is finished and saved; Ctrl-C again stops without saving\n")

        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # as nohup wants it
            numbers.append(hangup)
        before = {number: signal.signal(number, ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _step_graph(config: TrainConfig, world: World, step: Callable[[dict[str, Tensor]], None]) -> StepGraph | None:
    """What replays ``step`` as one CUDA graph, where that is possible and asked for."""
    exchanges = config.puzzle_emb_sharded or world.size > 1  # between processes, which wait for the device
    if not config.cuda_graph or config.compile or exchanges or world.device.type != "cuda":
        return None
    return StepGraph(step, CudaCapture(world.device, "cuda_graph=false"), world.device)


_DATA = "current_data."


def _carry_tensors(carry: Carry) -> dict[str, Tensor]:
    data = {f"{_DATA}{name}": tensor for name, tensor in carry.current_data.items()}
    return {"z_H": carry.z_H, "z_L": carry.z_L, "steps": carry.steps, "halted": carry.halted, **data}


def _test_split(config: TrainConfig) -> PuzzleDataset | None:
    """The split to evaluate on; None where it is not there or not asked for."""
    if config.eval_interval is None or not (config.data / "test").is_dir():
        return None
    return open_dataset(config.data, "test")


def _require_free(config: TrainConfig) -> None:
    """Refuse a folder that is no new run's."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; give a folder")
    if not config.resume and out.is_dir() and any(one.name != LOCK_FILE for one in out.iterdir()):
        way_out = "add resume=true to go on with that run, or choose" if checkpoints(out) else "choose"
        raise InputError(f"out={out} is not empty; {way_out} another out=")


def _open_run(config: TrainConfig, world: World, lock: RunLock) -> Checkpoint | None:
    """The checkpoint to resume from, or None for a new run; the run's folder is not touched before all have seen it."""
    out = config.out
    if not config.resume:
        world.barrier()
        return None
    if checkpoints(out) or (out / LOCK_FILE).exists():
        lock.take(world)
    saved = open_newest(out)
    world.barrier()
    if world.is_main:
        remove_leftovers(out)
    return saved


def _check_same_run(saved: Checkpoint, model: HRM, config: TrainConfig, data: dict[str, Any]) -> list[str]:
    """Notes on settings that differ from the checkpoint's.

    Raises:
        InputError: a setting differs that cannot change within a run.
    """
    before = saved.config["training"]
    now = config.model_dump(mode="json")
    known = saved.state["data"]
    for name, what in ((_PUZZLES, "the puzzles"), (_NAMES, "the names of the puzzle identifiers")):
        if name in known and known[name] != data[name]:  # earlier versions did not note them
            raise InputError(
                f"checkpoint {saved.path} does not fit this run: {what} of data={config.data} are not those it was "
                "trained on; give that folder, or start a new run in another out= with init="
            )
    fixed = [(f"data {name}", known.get(name), value) for name, value in data.items() if name not in (_PUZZLES, _NAMES)]
    trained = type(model.config).parse(saved.config["model"]) if saved.config["family"] == now["family"] else None
    architecture = [name for name in type(model.config).model_fields if trained and name not in _FREE]
    before.setdefault("family", "hrm")
    fixed += [(name, before.get(name), now[name]) for name in _FIXED]
    fixed += [(f"arch.{name}", getattr(trained, name), getattr(model.config, name)) for name in architecture]
    for name, old, new in fixed:
        if old != new:
            raise InputError(
                f"checkpoint {saved.path} does not fit this run: {name} was {old} and is {new}; "
                "give what it was trained with, or start a new run in another out="
            )
    changed = [name for name in now if name not in _UNREMARKABLE and now[name] != before.get(name)]
    return [f"{name} is now {now[name]}, was {before.get(name)}" for name in changed]

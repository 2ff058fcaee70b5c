"""The training loop."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hrm.compatibility import check_fits
from hrm.errors import InputError
from hrm.files import write_json
from hrm.inference.evaluate import evaluate
from hrm.inference.metrics import Metrics
from hrm.locate import Best, checkpoint_path
from hrm.training.best import BestCheckpoint, check_measured
from hrm.training.checkpoint import Checkpoint, remove_old, write_checkpoint, write_table
from hrm.training.clock import RunClock
from hrm.training.config import TrainConfig
from hrm.training.distributed import World
from hrm.training.log_sums import LogSums
from hrm.training.loggers import Loggers
from hrm.training.reporter import Reporter
from hrm.training.resume import check_same_run, keep_dtype
from hrm.training.run_data import RunData
from hrm.training.run_folder import RunFolder
from hrm.training.runner import StepRunner, graph_capture
from hrm.training.signals import StopSignals
from hrm.training.state import TrainingState
from hrm_kernels.sharded_embedding import ShardedEmbedding

Reason = Literal["done", "solved", "reached", "limit", "interrupted"]


class TrainingError(InputError):
    """Training cannot continue: a loss, gradient or weight is no longer finite."""


@dataclass(frozen=True)
class Result:
    """How a run ended; ``print`` shows it in one line.

    Attributes:
        step: steps made since the run began.
        reason: ``done``; ``solved`` (early_stop_exact_accuracy); ``reached`` (target_exact_accuracy); ``limit``
            (max_steps, max_minutes); ``interrupted``.
        checkpoint: the last checkpoint.
        evaluation: metrics of the last evaluation in this start of the run, if there was one.
        best: the best evaluation of the run, whose checkpoint is kept; None without evaluations, or if all were bad.
    """

    step: int
    reason: Reason
    checkpoint: Path
    evaluation: Metrics | None
    best: Best | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal ended the run; ``resume`` continues it."""
        return self.reason == "interrupted"

    @property
    def failed(self) -> tuple[()]:
        """Empty, since a run that fails raises; :class:`hrm.training.seeds.SeedRuns` has the runs that failed."""
        return ()

    def __str__(self) -> str:
        words = {"solved": "training puzzles solved", "reached": "target reached", "limit": "limit reached"}
        how = words.get(self.reason, self.reason)
        best = f"; {self.best}" if self.best and self.best.step != self.step else ""
        return f"{how} at step {self.step}; checkpoint {self.checkpoint}{best}"


def train(config: TrainConfig, world: World) -> Result:
    """Train as ``config`` says, from the start or from the newest checkpoint; every process of ``world`` calls this.

    Writes into ``config.out``: ``training.json`` (the configuration), ``metrics.csv``, ``evaluation.csv``,
    ``checkpoints/`` and ``best.json``, which names the best of them (:class:`hrm.training.best.BestCheckpoint`). A run
    that is stopped and resumed computes what it would have computed without the stop, on a CPU bit for bit. SIGINT
    (Ctrl-C), SIGTERM, SIGHUP (a closed terminal, unless it is ignored as under ``nohup``) and a standard output that
    accepts no more end the run after the current step, with a checkpoint.

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
    """One run; :func:`train` is the way to use it.

    Args:
        config: the run's configuration.
        world: its processes; each makes a trainer, and calls the same methods.

    Attributes:
        config: the configuration, with the dtype of the run that is resumed.
        state: weights, optimisers, averages, carry and position.
        runner: runs the steps.
        sums: the metrics since the last row of the log.
        last_step: where the run ends at the latest.
    """

    def __init__(self, config: TrainConfig, world: World):
        self._world, self._clock = world, RunClock()
        self._signals, self._reporter = StopSignals(announce=world.is_main), Reporter(quiet=not world.is_main)
        self._folder = RunFolder(config.out, config.resume, world)
        self._best = BestCheckpoint(config.keep_best, config.out, world)
        self._loggers: Loggers | None = None
        try:
            self._open(config)
        except BaseException:
            self._folder.release()
            raise

    def _open(self, config: TrainConfig) -> None:
        self._data = RunData.open(config, self._world)
        check_measured(config.keep_best, self._data.test, config.eval_max_examples)
        self._folder.require_free()
        self._reporter.say(f"data {config.data} ({self._data.train.num_examples:,} examples), run {config.out}")
        saved = self._folder.open_checkpoint()
        self.config = keep_dtype(config, saved) if saved else config
        notes = self._build(saved)
        self._folder.claim()
        self._best.write()
        self._open_log()
        for note in notes:
            self._reporter.say(note)
        before = saved.state if saved else {}
        self._clock.start(before.get("seconds", 0.0), before.get("row_seconds", 0.0))

    def _build(self, saved: Checkpoint | None) -> list[str]:
        """Build the state of the run, new or as in ``saved``, and its runner; returns notes for the user."""
        config, world, total = self.config, self._world, self._data.total_steps
        capture = graph_capture(config, world)
        self.state = TrainingState(config, self._data, world.device, capturable=capture is not None)
        self.sums = LogSums(world.device)
        self._evaluated_at = -1
        self._evaluation: Metrics | None = None
        self._identity = self._data.identity(self.state.model.identifiers)
        if self._data.test:
            check_fits(self.state.model, self._data.test)
        notes = self._resume(saved) if saved else self._initialize()
        self._saved_at = self.state.step if saved else -1
        self.runner = StepRunner(config, world, self.state, self.sums, total, capture)
        self.last_step = max(self.state.step, min(total, config.max_steps or total))
        return notes

    def _initialize(self) -> list[str]:
        """Load the weights that a new run starts with, if any; returns notes for the user."""
        if self.config.init is None:
            return []
        self.state.start_from(self.config.init, self.config.puzzle_emb)
        return [f"starts with the weights of {self.config.init}"]

    def _resume(self, saved: Checkpoint) -> list[str]:
        """Continue from ``saved``; returns notes for the user."""
        changed = check_same_run(saved, self.state.model.config, self.config, self._identity)
        self.state.load(saved, self._world)
        self.sums.load(saved, self._world)
        self._evaluated_at = saved.state["evaluated_at"]
        self._best.load(saved.state.get("best"), self.state.step)  # absent in checkpoints of earlier versions
        return [f"resumed from {saved.path}, step {self.state.step}", *changed]

    def _open_log(self) -> None:
        config, model, settings = self.config, self.state.model, self.config.model_dump(mode="json")
        if self._world.is_main:
            self._loggers = Loggers(config.out, config.logger, settings, self.state.step, self.sums.last_row_step)
            write_json(config.out / "training.json", settings | {"model": model.config.model_dump()})
        self._reporter.begin(self.last_step, self.state.step)
        self._reporter.say(
            f"{sum(p.numel() for p in model.parameters()):,} parameters, {self._data.sampler.num_groups:,} groups of "
            f"puzzles, {self._data.total_steps:,} steps of {config.global_batch_size} rows on {self._world.size} x "
            f"{self._world.device.type}"
        )

    def run(self) -> Result:
        """Train to the end or to an earlier reason to stop, save, and return how the run ended."""
        with self._signals.caught():
            reason = self._loop()
            if reason != "interrupted" and self._data.eval_every and self._evaluated_at != self.state.step:
                self.evaluate()
            self.save()  # before the last row of the log, so that a resumed run continues in the middle of it
            if self.state.step != self.sums.last_row_step:
                self.log(last=True)
        assert self._folder.last_checkpoint is not None
        return Result(self.state.step, reason, self._folder.last_checkpoint, self._evaluation, self._best.best)

    def close(self) -> None:
        """Leave the terminal and the logs in order, and free the graph of the step."""
        self.runner.close()
        self._reporter.close()
        if self._loggers:
            self._loggers.close()
        self._folder.release()

    def _loop(self) -> Reason:
        config, state = self.config, self.state
        first_step = state.step + 1
        while state.step < self.last_step:
            self.train_step()
            if state.step == first_step:
                self._say_if_slow(self._clock.start_seconds)
            if self._is_due(config.log_every):
                self.log(last=state.step == self.last_step)
                if self.sums.has_reached(config.early_stop_exact_accuracy):
                    return "solved"
            if self._is_due(self._data.eval_every):
                self.evaluate()
                if self._reached_target():
                    return "reached"
            if self._is_due(config.checkpoint_every):
                self.save()
            if reason := self._reason_to_stop():
                return reason
        return "done" if state.step >= self._data.total_steps else "limit"

    def _reached_target(self) -> bool:
        target, metrics = self.config.target_exact_accuracy, self._evaluation
        return target is not None and metrics is not None and metrics.exact_accuracy >= target

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _reason_to_stop(self) -> Reason | None:
        """The strongest reason of any process, the same answer in each."""
        reasons: tuple[Reason | None, ...] = (None, "limit", "interrupted")
        interrupted = self._signals.received or self._reporter.lost is not None
        return reasons[self._world.highest(2 if interrupted else int(self._clock.is_over(self.config.max_minutes)))]

    def _say_if_slow(self, seconds: float) -> None:
        """After a first step of ``seconds``, say when the next line comes if that is not soon."""
        step, log_every = self.state.step, self.config.log_every
        steps = min(log_every - step % log_every, self.last_step - step)
        if seconds * steps > 5:
            self._reporter.say(f"first step: {seconds:.1f} s; the next line comes after {steps} more (log_every)")

    def train_step(self) -> None:
        """Run the next step."""
        self.runner.run()

    def log(self, last: bool) -> None:
        """Write a row of the log, over the steps since the row before.

        Raises:
            TrainingError: a loss or gradient was not finite.
        """
        self._require_finite()
        seconds = self._clock.start_row()
        means = self.sums.take_row(self.state.step, self.config.global_batch_size, self._world)
        row: dict[str, float | int | None] = {
            "step": self.state.step,
            "epoch": self._data.epoch,
            **means,
            **(self.runner.depth if self.config.depth else {}),
            "lr": self.runner.lr,
            "grad_norm": self.runner.grad_norm.item(),
            "puzzles_per_second": (means["finished"] or 0) / seconds,
            "seconds": self._clock.seconds,
        }
        self._write_row("train", row)
        self._reporter.show(row, last)

    def evaluate(self) -> None:
        """Evaluate the averaged weights, or the weights if there are no averages, on the test split.

        The best evaluation so far is followed by a checkpoint.
        """
        assert self._data.test is not None
        ema, step = self.state.ema, self.state.step
        with self._clock.time_evaluation(), ema.applied() if ema else nullcontext():
            metrics = evaluate(
                self.state.model,
                self._data.test,
                batch_size=self.config.global_batch_size,
                max_examples=self.config.eval_max_examples,
                loss_type=self.config.loss,
            )
        self._evaluated_at, self._evaluation = step, metrics
        self._write_row("eval", {"step": step, **metrics.as_dict()})
        text = ", ".join(f"{name} {getattr(metrics, name):.4f}" for name in ("exact_accuracy", "accuracy", "lm_loss"))
        is_best = self._best.note(step, metrics)
        so_far = ", the best so far" if is_best else ""
        self._reporter.say(f"step {step}: test {text} ({metrics.count} puzzles){so_far}")
        if is_best:
            self.save()
            self._tidy()

    def _write_row(self, kind: Literal["train", "eval"], row: dict[str, Any]) -> None:
        if self._loggers:
            with self._folder.writing("the log"):
                self._loggers.log(kind, row)

    def save(self) -> None:
        """Write a checkpoint, unless this step has one.

        Raises:
            TrainingError: a loss, gradient or weight is not finite; nothing is written.
            InputError: the checkpoint cannot be written.
        """
        step, world = self.state.step, self._world
        if self._saved_at == step:
            return
        with self._clock.pause_row():
            self.runner.finite.note_tensors(self.state.floating())
            self._require_finite()
            self._write_checkpoint(step)
            world.barrier()
        self._folder.last_checkpoint, self._saved_at = checkpoint_path(self.config.out, step), step

    def _write_checkpoint(self, step: int) -> None:
        config, model, world = self.config, self.state.model, self._world
        sums = world.gather_rows(self.sums.values[None])
        tensors = self.state.tensors(world)
        with self._folder.writing(f"the checkpoint of step {step}"):
            table = model.puzzle_emb
            table_file = write_table(config.out, table, world) if isinstance(table, ShardedEmbedding) else None
            if sums is None:  # only the first process gathers and writes
                return
            values = {
                "sampler": self.state.batches.state,
                "data": self._identity,
                **self.sums.state,
                "depth": self.runner.depth,
                "evaluated_at": self._evaluated_at,
                "best": self._best.state,
                "seconds": self._clock.seconds,
                "row_seconds": self._clock.row_seconds,
            }
            extra = {"task": self._data.train.metadata.task, "training": config.model_dump(mode="json")}
            tensors |= {"log": {"sums": sums}}
            write_checkpoint(config.out, step, model, tensors, values, extra, table_file)
        self._tidy()

    def _tidy(self) -> None:
        """Write down which checkpoint is the best, and remove those that are neither that one nor among the last."""
        if self._world.is_main:
            with self._folder.writing("which checkpoint is the best"):
                self._best.write()
                remove_old(self.config.out, self.config.keep, self._best.path)

    def _require_finite(self) -> None:
        bad = self.runner.finite.first_bad_step(self._world)
        if bad is None:
            return
        saved = self._folder.last_checkpoint
        way_out = (
            f"the last good checkpoint is {saved}: resume from it with --resume and a lower lr"
            if saved
            else "there is no checkpoint yet: start again with a lower lr or a longer lr_warmup_steps"
        )
        raise TrainingError(f"the loss or a gradient of step {bad} is not finite; nothing of it was saved; {way_out}")

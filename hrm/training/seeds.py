"""The same training with several seeds: a run for each, and a table of all of them."""

import csv
import math
import statistics
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hrm.errors import InputError
from hrm.files import read_json, write_json
from hrm.locate import checkpoints, is_run
from hrm.training.checkpoint import remove_leftovers
from hrm.training.config import TrainConfig
from hrm.training.distributed import World
from hrm.training.reporter import Reporter
from hrm.training.run_lock import RunLock
from hrm.training.trainer import TrainingError, train

SEEDS_FILE = "seeds.json"
"""In the folder of all runs: their settings, and the values of each :class:`SeedRun`."""
_OF_ONE_RUN = ("seed", "seeds", "out", "resume")
_SHOWN = ("exact_accuracy", "accuracy", "lm_loss", "loss")
_LOGS = ("evaluation.csv", "metrics.csv")


@dataclass(frozen=True)
class SeedRun:
    """How the run of one seed ended.

    Attributes:
        seed: its seed.
        reason: as in :class:`hrm.training.trainer.Result`, or ``failed``.
        step: steps made; None for a run that failed.
        metrics: of the last evaluation, or without evaluations of the last row of the training log. Empty for a run
            that failed, and in all processes but the first.
        best: value of ``keep_best`` at the best evaluation; None if there is none.
        best_step: the step of that evaluation.
        error: why the run failed.
    """

    seed: int
    reason: str
    step: int | None
    metrics: dict[str, float]
    best: float | None = None
    best_step: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class SeedRuns:
    """How the runs of all seeds ended; ``print`` shows a table.

    Attributes:
        out: the folder of all runs; that of one is ``seed-<seed>`` in it.
        runs: in the order of the seeds; without those after a run that was interrupted.
        keep_best: the metric of ``best``.
    """

    out: Path
    runs: tuple[SeedRun, ...]
    keep_best: str | None

    @property
    def failed(self) -> tuple[SeedRun, ...]:
        """The runs that failed."""
        return tuple(run for run in self.runs if run.error is not None)

    @property
    def is_interrupted(self) -> bool:
        """Whether the last run was interrupted; ``resume`` continues it, and then runs the seeds after it."""
        return bool(self.runs) and self.runs[-1].reason == "interrupted"

    def values(self, metric: str) -> list[float]:
        """The values of ``metric`` (``best``: of the best evaluations) of the runs that have it."""
        found = (run.best if metric == "best" else run.metrics.get(metric) for run in self.runs)
        return [value for value in found if value is not None and not math.isnan(value)]

    def mean(self, metric: str) -> float:
        """The mean of :meth:`values`; NaN without values."""
        values = self.values(metric)
        return statistics.fmean(values) if values else math.nan

    def spread(self, metric: str) -> float:
        """The standard deviation of :meth:`values`, as estimated from a sample; NaN for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def __str__(self) -> str:
        names = [name for name in _SHOWN if self.values(name)]
        names += sorted({name for run in self.runs for name in run.metrics if name.startswith("ARC/")})
        best = bool(self.values("best"))
        rows = [["seed", "step", *names, *([f"best {self.keep_best}", "at step"] if best else []), "ended"]]
        for run in self.runs:
            row = [str(run.seed), _shown(run.step), *(_shown(run.metrics.get(name)) for name in names)]
            row += [_shown(run.best), _shown(run.best_step)] if best else []
            rows.append([*row, run.reason])
        for title, statistic in (("mean", self.mean), ("spread", self.spread)):
            row = [title, "", *(_shown(statistic(name)) for name in names)]
            rows.append([*row, *([_shown(statistic("best")), ""] if best else []), ""])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"seed {run.seed} failed: {run.error}" for run in self.failed)])


def _shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def train_seeds(config: TrainConfig, world: World) -> SeedRuns:
    """Train ``config.seeds`` runs, one after the other; every process of ``world`` calls this.

    Their seeds are ``config.seed`` and the numbers after it, their folders ``seed-<seed>`` in ``config.out``. Each run
    is the one that its seed gives by itself. A run that fails after it began does not stop the others. With
    ``config.resume`` runs that have ended are not run again, unless settings have changed.

    Raises:
        InputError: the folder is not empty (without ``resume``), or holds something else; or a run cannot begin.
    """
    out, count = config.out, config.seeds or 1
    if config.seed + count > 2**63:
        raise InputError(f"seed is {config.seed}, and {count} seeds from there on exceed 2**63; lower seed")
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in _OF_ONE_RUN}
    ended = _ended_before(config, settings)
    world.barrier()  # no process writes before all have looked
    runs: list[SeedRun] = []
    for index, seed in enumerate(range(config.seed, config.seed + count)):
        if seed in ended:
            runs.append(ended[seed])
            continue
        Reporter(quiet=not world.is_main).say(f"seed {seed} ({index + 1} of {count})")
        one = config.model_copy(update={"seed": seed, "seeds": None, "out": out / f"seed-{seed}"})
        runs.append(_run(one, world))
        if world.is_main:
            write_json(out / SEEDS_FILE, {"settings": settings, "runs": [asdict(run) for run in runs]})
        if runs[-1].reason == "interrupted":
            break
    return SeedRuns(out, tuple(runs), config.keep_best)


def _ended_before(config: TrainConfig, settings: dict[str, Any]) -> dict[int, SeedRun]:
    """The runs in ``config.out`` that ended with these settings, by seed."""
    out = config.out
    if not config.resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            way_out = "add --resume to continue its runs, or choose" if (out / SEEDS_FILE).exists() else "choose"
            raise InputError(f"{out} is not a new or empty folder; {way_out} another --out")
        return {}
    if is_run(out):
        raise InputError(f"{out} is the folder of a single run; resume it without --seeds, or choose another --out")
    file = out / SEEDS_FILE
    if not file.exists():
        return {}
    values = read_json(file)
    try:
        if values["settings"] != settings:
            return {}
        runs = [SeedRun(**run) for run in values["runs"]]
    except (KeyError, TypeError):
        raise InputError(f"{file} does not hold the results of several seeds; remove it") from None
    return {run.seed: run for run in runs if run.reason not in ("failed", "interrupted")}


def _run(config: TrainConfig, world: World) -> SeedRun:
    """The run of one seed, from the start or, with ``config.resume``, from its newest checkpoint if it has one."""
    begun = config.out / "training.json"
    if config.resume and not checkpoints(config.out):
        _start_over(config.out, world)
        config = config.model_copy(update={"resume": False})
    try:
        result = train(config, world)
    except Exception as error:
        # An error that not all processes have leaves the others waiting, so it has to end the program.
        if not begun.exists() or world.size > 1 and not isinstance(error, TrainingError):
            raise
        if not isinstance(error, InputError):
            traceback.print_exc()
        text = str(error) or type(error).__name__
        return SeedRun(config.seed, "failed", None, {}, error=text.splitlines()[0])
    metrics = _last_metrics(config.out) if world.is_main else {}
    best = (result.best.value, result.best.step) if result.best else (None, None)
    return SeedRun(config.seed, result.reason, result.step, metrics, *best)


def _start_over(run: Path, world: World) -> None:
    """Remove the logs of a run that was stopped before its first checkpoint."""
    if not run.is_dir():
        return
    lock = RunLock(run)
    lock.take(world)
    try:
        if world.is_main:
            remove_leftovers(run)
            for name in ("training.json", *_LOGS):
                (run / name).unlink(missing_ok=True)
            if (run / "checkpoints").is_dir():
                (run / "checkpoints").rmdir()
        world.barrier()
    finally:
        lock.release()


def _last_metrics(run: Path) -> dict[str, float]:
    """The last row of the evaluations, or of the training log, without times."""
    log = next((run / name for name in _LOGS if (run / name).exists()), None)
    if log is None:
        return {}
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    left_out = ("step", "seconds", "puzzles_per_second")
    values = {name: float(text) for name, text in rows[-1].items() if text and name not in left_out} if rows else {}
    return {name: value for name, value in values.items() if not math.isnan(value)}

"""Where a model is on disk; without importing torch."""

import re
from pathlib import Path
from typing import NamedTuple

from hrm import models
from hrm.errors import InputError
from hrm.files import read_json

BEST_FILE = "best.json"
"""In the folder of a training run: the values of :class:`Best`."""


class Best(NamedTuple):
    """The best evaluation of a training run so far.

    Attributes:
        step: the step after which it was; the run keeps the checkpoint of this step.
        metric: the name of the metric, as in ``evaluation.csv``.
        value: its value.
    """

    step: int
    metric: str
    value: float

    def __str__(self) -> str:
        return f"step {self.step}, the best by {self.metric} ({self.value:.4f})"


def checkpoint_path(run: Path, step: int) -> Path:
    """The folder of the checkpoint of step ``step``."""
    return run / "checkpoints" / f"step_{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of the training run in folder ``run``, oldest first."""
    folders = [path for path in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name[5:]))


def read_best(run: Path) -> Best | None:
    """The best evaluation of the training run in folder ``run``; None if the run has none.

    Raises:
        InputError: ``best.json`` is damaged.
    """
    file = run / BEST_FILE
    if not file.is_file():
        return None
    values = read_json(file)
    known = isinstance(values, dict) and values.keys() == set(Best._fields)
    if not known or type(values["step"]) is not int or type(values["value"]) not in (int, float):
        raise InputError(f"{file} does not tell the best checkpoint; remove it to use the newest one")
    return Best(**values)


def locate(path: Path | str) -> Path:
    """The folder or file that :func:`hrm.load` reads for ``path``; for a training run its best checkpoint.

    A run that has no best checkpoint, because it was not evaluated, stands for its newest one. The name of a model that
    comes with the package (:mod:`hrm.models`) stands for its folder, unless there is a path of that name.

    Raises:
        InputError: the run has no checkpoint yet, or its best one is gone.
    """
    path, shipped = Path(path), models.folder(str(path))
    if shipped is not None and not path.exists():
        return shipped
    if not is_run(path):
        return path
    steps = checkpoints(path)
    if not steps:
        raise InputError(
            f"{path} is a training run without a checkpoint yet; wait for one, or train with checkpoint_every=N"
        )
    best = read_best(path)
    if best is None:
        return steps[-1]
    if not checkpoint_path(path, best.step).is_dir():
        raise InputError(
            f"{path / BEST_FILE} names the checkpoint of step {best.step}, which does not exist; remove that file to "
            f"use the newest checkpoint, or name one, such as {steps[-1]}"
        )
    return checkpoint_path(path, best.step)


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a training run."""
    return (path / "checkpoints").is_dir() and not (path / "config.json").exists()


def described(path: Path | str) -> str | None:
    """Which checkpoint of a training run :func:`locate` chooses, in words; None if ``path`` is not a run."""
    run = Path(path)
    if not is_run(run):
        return None
    chosen, newest = locate(run), checkpoints(run)[-1]
    best = read_best(run)
    if best is None:
        return f"{run}: {chosen.name}, the newest checkpoint"
    return f"{run}: {best}" + (f"; the newest checkpoint is {newest}" if newest != chosen else "")


def require_known(checkpoint: str) -> None:
    """Refuse a name that can be neither a path, nor a shipped model, nor a model on the hub.

    Raises:
        InputError: it is none of them; or see :func:`locate`.
    """
    if locate(checkpoint).exists() or (checkpoint.count("/") in (1, 2) and not checkpoint.startswith((".", "/", "~"))):
        return
    raise InputError(
        f"{checkpoint} does not exist; expected a model folder, a checkpoint file, a hub name (owner/name), "
        f"or one of the models that come with the package: {', '.join(models.names())}"
    )

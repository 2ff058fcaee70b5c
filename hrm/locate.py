"""Where a model is on disk; without importing torch."""

import re
from pathlib import Path

from hrm import models
from hrm.errors import InputError


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of the training run in folder ``run``, oldest first."""
    folders = [path for path in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name[5:]))


def locate(path: Path | str) -> Path:
    """The folder or file that :func:`hrm.load` reads for ``path``; for a training run its newest checkpoint.

    The name of a model that comes with the package (:mod:`hrm.models`) stands for its folder, unless there is a path of
    that name.

    Raises:
        InputError: the run has no checkpoint yet.
    """
    path, shipped = Path(path), models.folder(str(path))
    if shipped is not None and not path.exists():
        return shipped
    if not (path / "checkpoints").is_dir() or (path / "config.json").exists():
        return path
    steps = checkpoints(path)
    if not steps:
        raise InputError(
            f"{path} is a training run without a checkpoint yet; wait for one, or train with checkpoint_every=N"
        )
    return steps[-1]


def require_known(checkpoint: str) -> None:
    """Refuse a name that can be neither a path, nor a shipped model, nor a model on the hub.

    Raises:
        InputError: it is none of them; or see :func:`locate`.
    """
    if locate(checkpoint).exists() or (checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~"))):
        return
    raise InputError(
        f"{checkpoint} does not exist; expected a model folder, a checkpoint file, a hub name (owner/name), "
        f"or one of the models that come with the package: {', '.join(models.names())}"
    )

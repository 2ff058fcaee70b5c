"""Whether a checkpoint belongs to a run, and which settings have changed since."""

from typing import Any

from hrm.config import ModelConfig
from hrm.errors import InputError
from hrm.training.checkpoint import Checkpoint
from hrm.training.config import TrainConfig
from hrm.training.run_data import NAMES, PUZZLES

_FIXED = ("family", "global_batch_size", "ema")  # settings that a resumed run cannot change
_FREE = ("gradient", "recompute")  # fields of the model's configuration that it can change
_UNREMARKABLE = {"arch", "resume", "data", "out"}  # changes that need no note


def keep_dtype(config: TrainConfig, saved: Checkpoint) -> TrainConfig:
    """``config`` with the dtype that the run started with: ``auto`` may mean another one on this device."""
    if config.arch.get("forward_dtype", "auto") != "auto":
        return config
    arch = config.arch | {"forward_dtype": saved.config["model"]["forward_dtype"]}
    return config.model_copy(update={"arch": arch})


def check_same_run(saved: Checkpoint, model: ModelConfig, config: TrainConfig, data: dict[str, Any]) -> list[str]:
    """Check that ``saved`` is a checkpoint of this run.

    Args:
        saved: the checkpoint.
        model: the model's configuration.
        config: the run's configuration.
        data: from :meth:`hrm.training.run_data.RunData.identity`.

    Returns:
        Notes for the user on settings that have changed.

    Raises:
        InputError: the data, the model or a setting differs that cannot change within a run.
    """
    _check_same_puzzles(saved, config, data)
    before, now = {"family": "hrm"} | saved.config["training"], config.model_dump(mode="json")
    fixed = [
        (f"data {name}", saved.state["data"].get(name), value)
        for name, value in data.items()
        if name not in (PUZZLES, NAMES)
    ]
    fixed += [(name, before.get(name), now[name]) for name in _FIXED]
    if saved.config["family"] == now["family"]:
        trained = type(model).parse(saved.config["model"])
        names = [name for name in type(model).model_fields if name not in _FREE]
        fixed += [(f"arch.{name}", getattr(trained, name), getattr(model, name)) for name in names]
    for name, old, new in fixed:
        if old != new:
            raise InputError(
                f"checkpoint {saved.path} does not fit this run: {name} was {old} and is {new}; "
                "give the value it was trained with, or start a new run in another --out"
            )
    changed = [name for name in now if name not in _UNREMARKABLE and now[name] != before.get(name)]
    return [f"{name} is now {now[name]}, was {before.get(name)}" for name in changed]


def _check_same_puzzles(saved: Checkpoint, config: TrainConfig, data: dict[str, Any]) -> None:
    known = saved.state["data"]
    for name, what in ((PUZZLES, "the puzzles"), (NAMES, "the names of the puzzle identifiers")):
        if name in known and known[name] != data[name]:  # checkpoints of earlier versions do not have them
            raise InputError(
                f"checkpoint {saved.path} does not fit this run: {what} of {config.data} are not those it was trained "
                "on; give the folder it was trained on, or start a new run in another --out with --init"
            )

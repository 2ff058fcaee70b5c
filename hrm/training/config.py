"""What a training run is told: recipes (YAML), overrides of the form ``key=value``, and their checks."""

import difflib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from yaml import YAMLError

from hrm.config import FAMILIES, ModelConfig
from hrm.data.format import Metadata
from hrm.errors import InputError, describe
from hrm.losses import LossType
from hrm.training.recipes import recipes
from hrm.untrusted_yaml import inert, parse_yaml
from hrm.weights import PuzzleEmb

_FROM_THE_DATA = ("seq_len", "vocab_size", "num_puzzle_identifiers")


class TrainConfig(BaseModel):
    """One training run. The names are the published code's where it has one.

    Attributes:
        data: the data folder, with a ``train`` split and, to be evaluated on, a ``test`` split.
        out: the run's folder (checkpoints, logs); must be new or empty unless ``resume``.
        resume: go on from the newest checkpoint in ``out``.
        init: start from the weights of another model of the same ``arch``, anything :func:`hrm.load` reads (of a run
            that averaged its weights the averages); optimisers and schedule start anew.
        puzzle_emb: with ``init``, what becomes of its puzzle embedding where it has another number of rows, or was
            trained on other puzzle identifiers (:data:`hrm.weights.PuzzleEmb`).
        epochs: how often each group of the data is visited; sets the number of steps.
        global_batch_size: rows of all processes together.
        lr, lr_min_ratio, lr_warmup_steps: see :func:`hrm.training.schedule.learning_rate`.
        beta1, beta2, weight_decay: of AdamATan2, for everything but puzzle embeddings.
        puzzle_emb_lr, puzzle_emb_weight_decay: of SparseSignSGD, for puzzle embeddings (same schedule).
        loss: of the tokens.
        seed: of the weights, the batches and the exploration.
        family: ``hrm`` or ``trm``, what is trained.
        arch: fields of :class:`hrm.HRMConfig` or :class:`hrm.TRMConfig`, less those that come from the data;
            ``forward_dtype`` may also be ``auto``: bfloat16 on a GPU, float32 on a CPU.
        gradient_warmup: steps over which the number of updates that carry gradients grows from one of each level to
            what ``arch.gradient`` says; 0 begins with that.
        puzzle_emb_sharded: divide the rows of the puzzle embedding among the processes; each holds, loads and saves its
            own. What is computed is the same.
        ema, ema_rate: keep a moving average of the weights, evaluate and solve with it.
        eval_interval: epochs from one evaluation on the test split to the next; None never evaluates.
        eval_max_examples: examples of the test split that an evaluation looks at; None all.
        checkpoint_every: steps from one checkpoint to the next; None only at the end.
        keep: checkpoints kept; older ones are removed.
        log_every: steps from one row of the log to the next; only then the host waits for the device.
        logger: what is written beside ``metrics.csv``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of each process; None leaves it to torch.
        compile: run the model through ``torch.compile``.
        cuda_graph: on one GPU, without ``compile`` and ``puzzle_emb_sharded``, replay the whole training step as one
            CUDA graph.
        max_steps, max_minutes: stop earlier than ``epochs`` say, after so many steps (of the run) or minutes (of this
            start of it, with the evaluation at its end, which is to take as long as the last one has); the schedule
            stays that of ``epochs``.
        early_stop_exact_accuracy: stop when the last ten rows of the training log reach this exact accuracy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Path
    out: Path
    resume: bool = False
    init: str | None = None
    puzzle_emb: PuzzleEmb = "strict"
    epochs: PositiveInt
    global_batch_size: PositiveInt = 768
    lr: NonNegativeFloat = 1e-4
    lr_min_ratio: float = Field(default=1.0, ge=0, le=1)
    lr_warmup_steps: NonNegativeInt = 2000
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.1
    puzzle_emb_lr: NonNegativeFloat = 1e-2
    puzzle_emb_weight_decay: NonNegativeFloat = 0.1
    loss: LossType = "stablemax_cross_entropy"
    seed: int = Field(default=0, ge=0, lt=2**63)
    family: Literal["hrm", "trm"] = "hrm"
    arch: dict[str, Any] = {}
    gradient_warmup: NonNegativeInt = 0
    puzzle_emb_sharded: bool = False
    ema: bool = False
    ema_rate: float = Field(default=0.999, ge=0, lt=1)
    eval_interval: PositiveInt | None = None
    eval_max_examples: PositiveInt | None = 1000
    checkpoint_every: PositiveInt | None = 1000
    keep: PositiveInt = 3
    log_every: PositiveInt = 10
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    device: str = "auto"
    threads: PositiveInt | None = None
    compile: bool = False
    cuda_graph: bool = True
    max_steps: PositiveInt | None = None
    max_minutes: float | None = Field(default=None, gt=0)
    early_stop_exact_accuracy: float | None = Field(default=None, gt=0, le=1)

    def model(self, metadata: Metadata, device: torch.device) -> ModelConfig:
        """The model's configuration for a data set.

        Raises:
            InputError: a value of ``arch`` is impossible.
        """
        values = dict(self.arch)
        if values.get("forward_dtype", "auto") == "auto":
            values["forward_dtype"] = "bfloat16" if device.type == "cuda" else "float32"
        return FAMILIES[self.family].parse(values | {name: getattr(metadata, name) for name in _FROM_THE_DATA})


def _is_text(annotation: Any) -> bool:
    """Whether a setting of this type is a name, a path or one of several words."""
    if get_origin(annotation) is Literal:
        return all(isinstance(word, str) for word in get_args(annotation))
    choices = [one for one in get_args(annotation) if one is not NoneType]
    return annotation in (str, Path) or bool(choices) and all(map(_is_text, choices))


_TEXTS = frozenset(name for name, field in TrainConfig.model_fields.items() if _is_text(field.annotation))
"""Settings that stay as they are typed: YAML would read 2024_11_28, 007, 1e3 and on as numbers and a boolean."""


def load_config(recipe: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """A run's configuration from a recipe and ``key=value`` overrides (``arch.H_cycles=3`` for the model's).

    Args:
        recipe: one of :func:`recipes`, or the path of a YAML file of the same keys. A recipe's ``base`` names another
            one that it builds on.
        overrides: stronger than the recipe.

    Raises:
        InputError: no such recipe, an unknown key, a value of the wrong type or out of range.
    """
    merged: Any = _read(recipe, ())
    texts: dict[str, str | None] = {}
    others = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is no override; expected key=value, such as lr=1e-4 or arch.H_cycles=3")
        if name in _TEXTS:
            texts[name] = None if text in ("", "null") else text
        else:
            others.append(override)
    try:
        typed = OmegaConf.create(inert(OmegaConf.to_container(OmegaConf.from_dotlist(others))))
        merged = OmegaConf.merge(merged, typed)
        container = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        named = " ".join(one if len(one) < 100 else f"{one[:100]}..." for one in overrides)
        raise InputError(f"overrides {named}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    values = {str(key): value for key, value in container.items()} | texts
    _check_names(values, TrainConfig.model_fields, "")
    if isinstance(values.get("arch"), dict):
        for name in _FROM_THE_DATA:
            if name in values["arch"]:
                raise InputError(f"arch.{name} comes from the data set; leave it away")
        family = FAMILIES.get(str(values.get("family", "hrm")))
        if family is not None:  # else it is said below
            _check_names(values["arch"], family.model_fields.keys() - set(_FROM_THE_DATA), "arch.")
    if values.get("data") is None:
        raise InputError(f"no data folder; add --data DIR, as in: hrm train {recipe} --data data/sudoku")
    if values.get("out") is None:
        values["out"] = f"runs/{Path(recipe).stem}"
    for name in ("data", "out", "init"):
        if values.get(name) is not None:
            values[name] = str(Path(str(values[name])).expanduser())
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"training configuration: {describe(error)}") from None


def _check_names(values: Iterable[str], known: Iterable[str], prefix: str) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
            way_out = f"did you mean {' or '.join(prefix + one for one in near)}?"
            if not near:
                way_out = f"there are {', '.join(prefix + one for one in sorted(known))}"
            raise InputError(f"unknown key {prefix}{str(name)[:40]}; {way_out}")


def _read(recipe: str, above: tuple[str, ...]) -> DictConfig:
    """The recipe with its bases merged in; ``above`` are the recipes that it is the base of."""
    path = files("hrm.training.recipes") / f"{recipe}.yaml" if recipe in recipes() else Path(recipe)
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipes(), n=1)
        raise InputError(
            f"no recipe {recipe!r}{f' (did you mean {near[0]}?)' if near else ''}; "
            f"expected {', '.join(recipes())}, or the path of a YAML file"
        )
    if recipe in above:
        raise InputError(f"recipe {recipe} is its own base ({' -> '.join((*above, recipe))}); remove one 'base'")
    try:
        text = path.read_text()
        loaded = OmegaConf.create(parse_yaml(text))
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        raise InputError(f"recipe {recipe} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"recipe {recipe} holds no mapping; expected lines such as 'lr: 1e-4'")
    as_typed = yaml.load(text, Loader=yaml.BaseLoader)  # (all scalars are strings to it)
    for name, value in OmegaConf.to_container(loaded, resolve=False).items():  # type: ignore[union-attr]
        if name in (*_TEXTS, "base") and isinstance(value, bool | int | float) and name in as_typed:
            loaded[name] = as_typed[name]
    base = loaded.pop("base", None)
    if base is None:
        return loaded
    merged = OmegaConf.merge(_read(str(base), (*above, recipe)), loaded)
    assert isinstance(merged, DictConfig)
    return merged

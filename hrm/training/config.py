"""The settings of a training run: recipes (YAML), overrides of the form ``key=value``, and their checks."""

import difflib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from typing_extensions import Self
from yaml import YAMLError

from hrm.config import FAMILIES, ModelConfig, automatic_dtype
from hrm.data.format import Metadata
from hrm.errors import InputError, describe
from hrm.losses import LossType
from hrm.training.best import BestMetric
from hrm.training.recipes import recipes
from hrm.training.schedule import DepthStage, Moment
from hrm.untrusted_yaml import inert, parse_yaml
from hrm.weights import PuzzleEmb

Share = Annotated[float, Field(ge=0, le=1)]
_FROM_THE_DATA = ("seq_len", "vocab_size", "num_puzzle_identifiers")


class TrainConfig(BaseModel):
    """The settings of one training run, named as in the published code where it has them.

    Attributes:
        data: the data folder. It needs a ``train`` split; a ``test`` split is evaluated during training.
        out: the run's folder for checkpoints and logs; must be new or empty, unless ``resume``.
        resume: continue the run in ``out`` from its newest checkpoint.
        init: start with the weights of another model of the same ``arch``, anything :func:`hrm.load` takes. A run that
            averages its weights gives the averages. Optimisers and schedule start over.
        puzzle_emb: with ``init``, what to do with a puzzle embedding that has another number of rows or was trained on
            other puzzle identifiers (:data:`hrm.weights.PuzzleEmb`).
        augment: change each puzzle of a batch by a random symmetry of its task, anew at every visit
            (:meth:`hrm.data.task.PuzzleTask.symmetries`). It never becomes a puzzle of the ``test`` split.
        mix_data: a second data folder of the same task and puzzle identifiers, whose ``train`` split is mixed in.
        mix_share: the share of the rows from ``mix_data``, 0 to 1; or a list of ``[moment, share]``, with straight
            lines in between. A moment is a step, or a share of all steps (:data:`hrm.training.schedule.Moment`).
        epochs: how often each group of the data is visited; sets the number of steps.
        global_batch_size: rows per step, all processes together.
        lr, lr_min_ratio, lr_warmup_steps: see :func:`hrm.training.schedule.learning_rate`.
        beta1, beta2, weight_decay: of AdamATan2, for everything except puzzle embeddings.
        puzzle_emb_lr, puzzle_emb_weight_decay: of SparseSignSGD, for puzzle embeddings; the schedule is the same.
        loss: the token loss.
        seed: seed of the weights, the batches and the exploration.
        seeds: train this many runs, with ``seed`` and the numbers after it as seeds, in a folder of ``out`` each
            (:func:`hrm.training.seeds.train_seeds`); null trains one run in ``out``.
        family: what to train, ``hrm``, ``trm``, ``eqr`` or ``urm``.
        arch: fields of the family's configuration, such as :class:`hrm.HRMConfig`, without those of the data.
            ``forward_dtype`` can also be ``auto``: bfloat16 on a GPU and on a CPU that multiplies it in hardware,
            else float32 (:func:`hrm.config.automatic_dtype`).
        gradient_warmup: steps over which the number of updates that carry gradients grows, from one of each level to
            ``arch.gradient``; 0 starts with ``arch.gradient``.
        depth: the depth curriculum: stages of :class:`hrm.training.schedule.DepthStage` with fewer cycles, before those
            of ``arch``. Evaluations always run the cycles of ``arch``.
        loss_decay: the loss of a row in its segment t, counted from 1, has the weight ``loss_decay ** (t - 1)``; 1
            weights all segments equally.
        puzzle_emb_sharded: divide the rows of the puzzle embedding among the processes. Each process holds, loads and
            saves its rows; results do not change.
        ema, ema_rate: keep a moving average of the weights, and evaluate and solve with it.
        eval_interval: epochs from one evaluation on the test split to the next; None never evaluates.
        eval_max_examples: number of test examples per evaluation; None uses all.
        checkpoint_every: steps from one checkpoint to the next; None saves only at the end.
        keep: number of checkpoints to keep; older ones are removed, except the best.
        keep_best: the metric of the evaluations whose best checkpoint is kept beside the last ones, and is what
            :func:`hrm.load`, ``hrm eval`` and ``hrm solve`` take for the run (one of
            :data:`hrm.training.best.BestMetric`); null keeps only the last ones.
        log_every: steps from one row of the log to the next. Only these steps wait for the device.
        logger: an additional log: ``tensorboard`` or ``wandb``; ``csv`` adds none to ``metrics.csv``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of each process; None leaves the number to torch.
        compile: run the model through ``torch.compile``.
        cuda_graph: replay the whole step as one CUDA graph; only on a single GPU, without ``compile`` and
            ``puzzle_emb_sharded``. ``distributed``: on several GPUs too, with the sums over processes (NCCL) in the
            graph; not run on GPUs yet.
        max_steps: stop after this many steps of the run; the schedule stays that of ``epochs``.
        max_minutes: stop after this many minutes of this start of the run, including a last evaluation, which is
            expected to take as long as the one before; the schedule stays that of ``epochs``.
        early_stop_exact_accuracy: stop when the last ten rows of the training log reach this exact accuracy.
        target_exact_accuracy: stop when an evaluation on the test split reaches this exact accuracy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Path
    out: Path
    resume: bool = False
    init: str | None = None
    puzzle_emb: PuzzleEmb = "strict"
    augment: bool = False
    mix_data: Path | None = None
    mix_share: Share | tuple[tuple[Moment, Share], ...] = 0.5
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
    seeds: PositiveInt | None = None
    family: Literal["hrm", "trm", "eqr", "urm"] = "hrm"
    arch: dict[str, Any] = {}
    gradient_warmup: NonNegativeInt = 0
    depth: tuple[DepthStage, ...] = ()
    loss_decay: float = Field(default=1.0, gt=0, le=1)
    puzzle_emb_sharded: bool = False
    ema: bool = False
    ema_rate: float = Field(default=0.999, ge=0, lt=1)
    eval_interval: PositiveInt | None = None
    eval_max_examples: PositiveInt | None = 1000
    checkpoint_every: PositiveInt | None = 1000
    keep: PositiveInt = 3
    keep_best: BestMetric | None = "exact_accuracy"
    log_every: PositiveInt = 10
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    device: str = "auto"
    threads: PositiveInt | None = None
    compile: bool = False
    cuda_graph: bool | Literal["distributed"] = True
    max_steps: PositiveInt | None = None
    max_minutes: float | None = Field(default=None, gt=0)
    early_stop_exact_accuracy: float | None = Field(default=None, gt=0, le=1)
    target_exact_accuracy: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _target_is_measured(self) -> Self:
        if self.target_exact_accuracy is not None and self.eval_interval is None:
            raise ValueError("target_exact_accuracy needs evaluations during training; set eval_interval too")
        return self

    def model(self, metadata: Metadata, device: torch.device) -> ModelConfig:
        """The model's configuration for a data set.

        Raises:
            InputError: a value of ``arch`` is impossible.
        """
        values = dict(self.arch)
        if values.get("forward_dtype", "auto") == "auto":
            values["forward_dtype"] = automatic_dtype(device)
        return FAMILIES[self.family].parse(values | {name: getattr(metadata, name) for name in _FROM_THE_DATA})


def _is_text(annotation: Any) -> bool:
    """Whether a setting of this type is a name, a path or one of several words."""
    if get_origin(annotation) is Literal:
        return all(isinstance(word, str) for word in get_args(annotation))
    choices = [choice for choice in get_args(annotation) if choice is not NoneType]
    return annotation in (str, Path) or bool(choices) and all(map(_is_text, choices))


_TEXTS = frozenset(name for name, field in TrainConfig.model_fields.items() if _is_text(field.annotation))
"""Settings that keep their text: YAML would read 2024_11_28, 007, 1e3 and on as numbers and a boolean."""


def load_config(recipe: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a run, from a recipe and ``key=value`` overrides (``arch.H_cycles=3`` for the model's).

    Args:
        recipe: one of :func:`recipes`, or the path of a YAML file with the same keys. A recipe's ``base`` names the
            recipe that it builds on.
        overrides: replace settings of the recipe.

    Raises:
        InputError: no such recipe, an unknown key, a value of the wrong type or out of range.
    """
    values = _merged(_read(recipe, ()), overrides)
    _check_names(values, TrainConfig.model_fields, "")
    family = FAMILIES.get(str(values.get("family", "hrm")))
    if isinstance(values.get("arch"), dict) and family is not None:  # TrainConfig reports other values
        _check_arch(values["arch"], family)
    if values.get("data") is None:
        raise InputError(f"no data folder; add --data DIR, as in: hrm train {recipe} --data data/sudoku")
    if values.get("out") is None:
        values["out"] = f"runs/{Path(recipe).stem}"
    for name in ("data", "mix_data", "out", "init"):
        if values.get(name) is not None:
            values[name] = str(Path(str(values[name])).expanduser())
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"training configuration: {describe(error)}") from None


def _merged(recipe: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of ``recipe``, replaced by ``overrides``."""
    texts: dict[str, str | None] = {}
    others = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is not an override; expected key=value, such as lr=1e-4 or arch.H_cycles=3")
        if name in _TEXTS:
            texts[name] = None if text in ("", "null") else text
        else:
            others.append(override)
    try:
        typed = OmegaConf.create(inert(OmegaConf.to_container(OmegaConf.from_dotlist(others))))
        container = OmegaConf.to_container(OmegaConf.merge(recipe, typed), resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        named = " ".join(text if len(text) < 100 else f"{text[:100]}..." for text in overrides)
        raise InputError(f"overrides {named}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()} | texts


def _check_arch(arch: dict[str, Any], family: type[ModelConfig]) -> None:
    for name in _FROM_THE_DATA:
        if name in arch:
            raise InputError(f"arch.{name} comes from the data set; leave it out")
    _check_names(arch, family.model_fields.keys() - set(_FROM_THE_DATA), "arch.")


def _check_names(values: Iterable[str], known: Iterable[str], prefix: str) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
            way_out = f"did you mean {' or '.join(prefix + match for match in near)}?"
            if not near:
                way_out = f"expected one of {', '.join(prefix + key for key in sorted(known))}"
            raise InputError(f"unknown key {prefix}{str(name)[:40]}; {way_out}")


def _read(recipe: str, above: tuple[str, ...]) -> DictConfig:
    """The recipe merged into its bases; ``above`` are the recipes that build on it."""
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
        raise InputError(f"recipe {recipe} does not hold a mapping; expected lines such as 'lr: 1e-4'")
    as_typed = yaml.load(text, Loader=yaml.BaseLoader)  # reads all scalars as strings
    for name, value in OmegaConf.to_container(loaded, resolve=False).items():  # type: ignore[union-attr]
        if name in (*_TEXTS, "base") and isinstance(value, bool | int | float) and name in as_typed:
            loaded[name] = as_typed[name]
    base = loaded.pop("base", None)
    if base is None:
        return loaded
    merged = OmegaConf.merge(_read(str(base), (*above, recipe)), loaded)
    assert isinstance(merged, DictConfig)
    return merged

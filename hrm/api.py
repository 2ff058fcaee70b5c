"""The functions most users need: ``hrm.train``, ``hrm.evaluate``, ``hrm.solve``, ``hrm.scale``, ``hrm.calibrate``,
``hrm.adapt`` and ``hrm.analyze``.

The commands of the same names call these functions. All of them take a model as an object or by name, and data as an
object or a folder. They check their arguments before they import torch, which takes seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from hrm import models
from hrm.data import task_of
from hrm.data.fingerprint import names_fingerprint
from hrm.data.format import open_dataset
from hrm.errors import InputError
from hrm.files import require_new, require_writable, write_json
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.halting import CALIBRATION_FILE, calibration_folder, check_halting, needs, parse_halting
from hrm.inference.selection import DEFAULT_ORDER
from hrm.locate import require_known
from hrm.progress import Progress, begun, silent

if TYPE_CHECKING:
    import numpy as np

    from hrm.analysis.results import Analysis
    from hrm.data.format import PuzzleDataset
    from hrm.data.task import PuzzleTask
    from hrm.inference.calibrate import Calibration
    from hrm.inference.engine import Trajectories
    from hrm.inference.halting import Halting
    from hrm.inference.metrics import Metrics
    from hrm.inference.scaling import Scaling
    from hrm.inference.solve import Solution
    from hrm.model import HRM
    from hrm.training.adapt import Adaptation
    from hrm.training.seeds import SeedRuns
    from hrm.training.trainer import Result
    from hrm.weights import PuzzleEmb

    Model: TypeAlias = HRM | Path | str
    Data: TypeAlias = PuzzleDataset | Path | str

_EVALUATION_FILES = ("predictions.npz", "metrics.json", "submission.json")
_SCALING_FILES = ("scaling.json", "scaling.md", "scaling.png")
_MODEL_FILES = ("config.json", "model.safetensors", "halting.*")


@overload
def train(
    recipe: str | Path,
    *overrides: str,
    data: Data | None = None,
    out: Path | str | None = None,
    init: Path | str | None = None,
    resume: bool = False,
    batch_size: int | None = None,
    seed: int | None = None,
    seeds: None = None,
    device: str | None = None,
    **settings: Any,
) -> Result: ...


@overload
def train(
    recipe: str | Path,
    *overrides: str,
    data: Data | None = None,
    out: Path | str | None = None,
    init: Path | str | None = None,
    resume: bool = False,
    batch_size: int | None = None,
    seed: int | None = None,
    seeds: int,
    device: str | None = None,
    **settings: Any,
) -> SeedRuns: ...


def train(
    recipe: str | Path,
    *overrides: str,
    data: Data | None = None,
    out: Path | str | None = None,
    init: Path | str | None = None,
    resume: bool = False,
    batch_size: int | None = None,
    seed: int | None = None,
    seeds: int | None = None,
    device: str | None = None,
    **settings: Any,
) -> Result | SeedRuns:
    """Train a model on a data folder.

    ::

        hrm.train("demo", data="demo/data", out="demo/run", lr=1e-3, arch={"halt_max_steps": 4})

    Args:
        recipe: a recipe of the package (:func:`hrm.training.recipes.recipes`), or the path of a YAML file of settings.
        overrides: more settings as text, such as ``"arch.H_cycles=3"``.
        data: the data folder. It needs a train split; a test split is evaluated during training.
        out: the run's folder, new or empty (default: ``runs/<recipe>``).
        init: a model whose weights the run starts with.
        resume: continue the run in ``out`` from its newest checkpoint.
        batch_size: rows per step, all processes together (the setting ``global_batch_size``).
        seed: seed of the weights, the batches and the exploration.
        seeds: train this many runs, with ``seed`` and the numbers after it as seeds, in ``seed-<seed>`` of ``out``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        settings: any other field of :class:`hrm.training.config.TrainConfig`.

    Returns:
        The last step, why the run ended, its last checkpoint and its last evaluation; with ``seeds`` the metrics of
        each run, with mean and spread.

    Raises:
        InputError: a setting is unknown, given twice with different values or impossible, or the data do not fit.
        hrm.training.trainer.TrainingError: a loss, gradient or weight is not finite.
    """
    named = {
        "data": None if data is None else _folder_of(data),
        "out": out,
        "init": init,
        "resume": resume or None,
        "global_batch_size": batch_size,
        "seed": seed,
        "seeds": seeds,
        "device": device,
    }
    texts = _texts({name: value for name, value in named.items() if value is not None}) | _texts(settings)
    for override in overrides:
        name, _, text = override.partition("=")
        if texts.get(name, text) != text:
            raise InputError(f"{name} has two values, {texts[name]} and {text}; give one")

    from hrm.training.config import load_config

    config = load_config(str(recipe), [*(f"{name}={text}" for name, text in texts.items()), *overrides])

    import torch

    from hrm.training.distributed import joined
    from hrm.training.seeds import train_seeds
    from hrm.training.trainer import train as run

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(config.threads or threads)
        with joined(config.device) as world:
            return run(config, world) if config.seeds is None else train_seeds(config, world)
    finally:
        torch.set_num_threads(threads)


def evaluate(
    model: Model,
    data: Data,
    *,
    split: str = "test",
    halt: str | Halting = "fixed",
    max_steps: int | None = None,
    max_examples: int | None = None,
    batch_size: int | None = None,
    trajectories: int | Trajectories = 1,
    damping: str | AdaptiveDamping | None = None,
    out: Path | str | None = None,
    force: bool = False,
    puzzle_emb: PuzzleEmb = "strict",
    device: str = "auto",
    progress: Progress = silent,
) -> Metrics:
    """Measure a model on labelled puzzles. Under torchrun the processes share the work.

    ::

        print(hrm.evaluate("sudoku4", "demo/data"))

    Args:
        model: a model, or what :func:`hrm.load` takes.
        data: a data set, or a data folder.
        split: the split of a data folder.
        halt: ``"fixed"`` runs all segments for every puzzle, the published protocol. Any other rule ends a puzzle
            where it halts: ``"q"``, ``"margin:X"``, ``"stable:K"``, ``"calibrated"`` (as :func:`calibrate` stored it)
            or a callable (:mod:`hrm.inference.halting`).
        max_steps: most segments per puzzle (default: as in training).
        max_examples: use only the first examples (default: all).
        batch_size: puzzles processed together, in all processes (default: 256, or 64 if puzzles halt early or have
            several trajectories). No metric depends on it.
        trajectories: attempts at each puzzle: a number, or :class:`hrm.inference.engine.Trajectories`. The metrics then
            have the exact accuracy of each rule that chooses among their answers, and of a perfect choice.
        damping: let a puzzle whose states no longer come closer to rest go only part of the way with each segment:
            ``"DECAY"`` or ``"DECAY:PATIENCE"``, such as ``"0.9:5"`` (:class:`hrm.inference.damping.AdaptiveDamping`).
        out: a folder for ``predictions.npz``, ``metrics.json`` and, for ARC, ``submission.json``.
        force: replace these files.
        puzzle_emb: what to do with a puzzle embedding trained on other puzzles (:data:`hrm.weights.PuzzleEmb`).
        device: where a model given by name runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called with the number of finished examples.

    Raises:
        InputError: model and data do not fit, a file is damaged or in the way, or an argument is impossible.
    """
    out = _results_folder(out, _EVALUATION_FILES, force)
    _require_known(model)
    _check_halting(model, halt)
    if batch_size is None:
        batch_size = 256 if halt == "fixed" and trajectories == 1 and damping is None else 64
    dataset = _open(data, split)
    with _loaded(model, dataset, puzzle_emb, device) as (loaded, is_main):
        from hrm.inference import evaluate as evaluation

        checks = needs(parse_halting(halt, loaded.folder)).check
        metrics = evaluation.evaluate(
            loaded,
            dataset,
            batch_size=batch_size,
            max_steps=max_steps,
            halt=halt,
            max_examples=max_examples,
            trajectories=trajectories,
            damping=AdaptiveDamping.of(damping),
            task=_task_of(dataset) if trajectories != 1 or checks else None,
            out=out,
            progress=progress,
        )
        if out is not None and is_main:
            write_json(out / "metrics.json", metrics.json_values())
    return metrics


@overload
def solve(
    model: Model,
    puzzles: str,
    *,
    task: PuzzleTask | None = None,
    halt: str | Halting = "auto",
    max_steps: int | None = None,
    identifier: int = 0,
    batch_size: int = 64,
    abstain: bool = False,
    trajectories: int | Trajectories = 1,
    damping: str | AdaptiveDamping | None = None,
    trace: bool = True,
    device: str = "auto",
    progress: Progress = silent,
) -> Solution: ...


@overload
def solve(
    model: Model,
    puzzles: list[str] | np.ndarray,
    *,
    task: PuzzleTask | None = None,
    halt: str | Halting = "auto",
    max_steps: int | None = None,
    identifier: int = 0,
    batch_size: int = 64,
    abstain: bool = False,
    trajectories: int | Trajectories = 1,
    damping: str | AdaptiveDamping | None = None,
    trace: bool = True,
    device: str = "auto",
    progress: Progress = silent,
) -> list[Solution]: ...


def solve(
    model: Model,
    puzzles: str | list[str] | np.ndarray,
    *,
    task: PuzzleTask | None = None,
    halt: str | Halting = "auto",
    max_steps: int | None = None,
    identifier: int = 0,
    batch_size: int = 64,
    abstain: bool = False,
    trajectories: int | Trajectories = 1,
    damping: str | AdaptiveDamping | None = None,
    trace: bool = True,
    device: str = "auto",
    progress: Progress = silent,
) -> Solution | list[Solution]:
    """Solve one puzzle, or several.

    ::

        solution = hrm.solve("sudoku4", "..1.3.......12..")
        solution.valid, solution.steps, solution.answer

    Args:
        model: a model, or what :func:`hrm.load` takes.
        puzzles: one puzzle as text, several, or ``[n, seq_len]`` input tokens.
        task: reads puzzles and checks answers (default: the task of the package that has the model's shape).
        halt: as for :func:`evaluate`; ``"auto"``: as calibrated if the model is, else ``"q"``.
        max_steps: most segments per puzzle (default: as in training).
        identifier: row of the puzzle embedding, for all puzzles.
        batch_size: trajectories processed together.
        abstain: give no answer rather than one that the task does not verify (``solution.answered``).
        trajectories: attempts at each puzzle: a number, or :class:`hrm.inference.engine.Trajectories`, which says how
            they differ and which answer is taken.
        damping: as for :func:`evaluate`.
        trace: keep the answer after each segment (``solution.frames``), else only the last one.
        device: where a model given by name runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called with the number of solved puzzles.

    Returns:
        The solution of a single puzzle given as text; else a list, in order.

    Raises:
        InputError: a puzzle cannot be read, task, puzzles and model do not fit, the task cannot verify answers and
            ``abstain`` is set, or an argument is impossible.
    """
    _require_known(model)
    _check_halting(model, halt)
    with _loaded(model, None, "strict", device) as (loaded, _):
        import numpy as np

        from hrm.inference import solve as solving

        if task is None:
            task = task_of_model(model, loaded)
        if isinstance(puzzles, str):
            tokens = task.parse(puzzles)[None]
        elif isinstance(puzzles, np.ndarray):
            tokens = puzzles
        else:
            tokens = np.array([task.parse(puzzle) for puzzle in puzzles], np.uint8).reshape(-1, task.seq_len)
        solutions = solving.solve(
            loaded,
            task,
            tokens,
            max_steps=max_steps,
            halt=halt,
            puzzle_identifiers=np.full(len(tokens), identifier),
            batch_size=batch_size,
            abstain=abstain,
            trajectories=trajectories,
            damping=AdaptiveDamping.of(damping),
            trace=trace,
            progress=progress,
        )
    return solutions[0] if isinstance(puzzles, str) else solutions


def scale(
    model: Model,
    data: Data,
    *,
    segments: Sequence[int] | None = None,
    trajectories: Sequence[int] = (1,),
    noise: float | None = None,
    start_noise: float = 0.0,
    augment: bool = False,
    select: str = DEFAULT_ORDER,
    seed: int = 0,
    split: str = "test",
    halt: str | Halting = "fixed",
    damping: str | AdaptiveDamping | None = None,
    max_examples: int | None = None,
    batch_size: int = 64,
    out: Path | str | None = None,
    force: bool = False,
    puzzle_emb: PuzzleEmb = "strict",
    device: str = "auto",
    progress: Progress = silent,
) -> Scaling:
    """Measure accuracy against compute: every combination of numbers of segments and trajectories, and every rule
    that chooses among the answers, without retraining.

    ::

        print(hrm.scale("sudoku6", "data/sudoku6", segments=[1, 4, 16], trajectories=[1, 4]))

    Args:
        model: a model, or what :func:`hrm.load` takes.
        data: a data set, or a data folder.
        segments: the numbers of segments (default: 1, 2, 4, ... up to the number in training).
        trajectories: the numbers of attempts at each puzzle.
        noise, start_noise, augment: how they differ (:class:`hrm.inference.engine.Trajectories`); by default by noise
            before each segment.
        select: the rules that choose the answer, in order, such as ``"check,vote,q"``; each is also measured by itself.
        seed: seed of symmetries and noise.
        split: the split of a data folder.
        halt, damping: as for :func:`evaluate`; a trajectory that halts uses no more segments.
        max_examples: use only the first examples (default: all).
        batch_size: trajectories processed together.
        out: a folder for ``scaling.json``, ``scaling.md`` and ``scaling.png``.
        force: replace these files.
        puzzle_emb: as for :func:`evaluate`.
        device: where a model given by name runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called with the number of finished puzzles.

    Raises:
        InputError: as :func:`evaluate`; or the trajectories would all be the same.
    """
    if (noise or start_noise or augment) and max(trajectories, default=1) == 1:
        raise InputError("noise changes no answer of a single trajectory; give several trajectories, such as 1,4")
    out = _results_folder(out, _SCALING_FILES, force)
    _require_known(model)
    _check_halting(model, halt)
    dataset = _open(data, split)
    with _loaded(model, dataset, puzzle_emb, device, one_process="hrm scale") as (loaded, _):
        from hrm.inference import scaling
        from hrm.inference.engine import Trajectories

        how = Trajectories(
            max(trajectories, default=1), noise, start_noise, augment, seed=seed, select=select, stop=False
        ).for_model(loaded.config, _task_of(dataset))
        result = scaling.scale(
            loaded,
            _task_of(dataset),
            dataset,
            segments=list(_powers_of_two(loaded.config.halt_max_steps) if segments is None else segments),
            trajectories=list(trajectories),
            how=how,
            halt=halt,
            damping=AdaptiveDamping.of(damping),
            max_examples=max_examples,
            slots=batch_size,
            progress=progress,
        )
    if out is not None:
        about = {"checkpoint": _name_of(model), "data": str(dataset.folder), "split": dataset.split, "halt": str(halt)}
        about["damping"] = "none" if damping is None else str(damping)
        result.save(out, **about, **scaling.described(how))
    return result


def calibrate(
    model: Model,
    data: Data,
    *,
    rule: str = "margin",
    loss: float = 0.0,
    split: str = "test",
    max_steps: int | None = None,
    max_examples: int | None = None,
    batch_size: int = 64,
    out: Path | str | None = None,
    puzzle_emb: PuzzleEmb = "strict",
    device: str = "auto",
    progress: Progress = silent,
) -> Calibration:
    """Find the halting threshold with the fewest segments for an allowed loss of exact accuracy.

    The threshold is stored in ``out``; ``halt="calibrated"`` uses a threshold that is stored beside the checkpoint.

    Args:
        model: a model, or what :func:`hrm.load` takes.
        data: a data set, or a data folder; not the puzzles of the training.
        rule: what has the threshold: ``"margin"`` (q_halt - q_continue), ``"residual"`` (the change of the states), or
            ``"q|residual"`` (the same, beside halting by Q).
        loss: exact accuracy that may be lost, 0 to 1.
        split: the split of a data folder.
        max_steps: most segments per puzzle (default: as in training).
        max_examples: use only the first examples (default: all).
        batch_size: puzzles processed together.
        out: the folder for ``halting.json``, ``halting.md`` and ``halting.png`` (default: beside the checkpoint; the
            threshold of a model object is not stored).
        puzzle_emb: as for :func:`evaluate`.
        device: where a model given by name runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called with the number of finished puzzles.

    Raises:
        InputError: as :func:`evaluate`; or the model has no local folder to store the threshold in.
    """
    out = _calibration_folder(model) if out is None else _results_folder(out)
    _require_known(model)
    dataset = _open(data, split)
    with _loaded(model, dataset, puzzle_emb, device, one_process="hrm calibrate") as (loaded, _):
        from hrm.inference import calibrate as calibration

        result = calibration.calibrate(
            loaded,
            dataset,
            rule=rule,
            loss=loss,
            max_steps=max_steps,
            max_examples=max_examples,
            slots=batch_size,
            progress=progress,
        )
    if out is not None:
        result.save(out, f"{dataset.folder} ({dataset.split})")
    return result


def adapt(
    model: Model,
    data: Data,
    *,
    out: Path | str | None = None,
    steps: int = 2000,
    batch_size: int = 32,
    lr: float = 1e-2,
    weight_decay: float = 0.1,
    init: Literal["mean", "zero"] = "mean",
    seed: int = 0,
    force: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> Adaptation:
    """Fit new puzzle embeddings to the demonstrations of new tasks; all other weights stay as they are.

    Args:
        model: a model, which is changed in place, or what :func:`hrm.load` takes.
        data: a data set of demonstrations, or a data folder, whose train split is used.
        out: the folder of the adapted model; needed for a model given by name.
        steps: number of optimisation steps.
        batch_size: demonstrations per step.
        lr, weight_decay: of SparseSignSGD.
        init: start from the mean of the trained rows, or from zero.
        seed: seed of the order of the demonstrations and of the exploration.
        force: replace the model in ``out``.
        device: where a model given by name runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called with the number of finished steps.

    Raises:
        InputError: ``out`` is missing or in the way, model and data do not fit, an argument is impossible, or the loss
            is not finite.
    """
    if out is not None:
        out = _path(out)
        require_new(out, force, "model folder", _MODEL_FILES)
    elif isinstance(model, str | Path):
        raise InputError("hrm adapt writes a new model; add --out DIR")
    _require_known(model)
    dataset = _open(data, "train")
    with _loaded(model, dataset, "mean", device, one_process="hrm adapt") as (loaded, _):
        from hrm.training import adapt as adaptation
        from hrm.weights import read_extra, save

        report_step = begun(progress, "adapting", steps)
        done = adaptation.adapt(
            loaded,
            dataset,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            init=init,
            seed=seed,
            progress=lambda step, _: report_step(step),
        )
        if out is not None:
            extra = read_extra(str(model)) if isinstance(model, str | Path) else {}
            save(loaded, out, overwrite=force, **(extra | {"adapted_to": str(dataset.folder)}))
    return done


def analyze(
    model: Model,
    data: Data,
    *,
    out: Path | str | None = None,
    split: str = "test",
    puzzles: int = 100,
    boards: int = 6,
    baseline_steps: int = 300,
    max_steps: int | None = None,
    max_examples: int | None = 1000,
    seed: int = 0,
    force: bool = False,
    puzzle_emb: PuzzleEmb = "strict",
    device: str = "auto",
    progress: Progress = silent,
) -> Analysis:
    """Analyse how a model solves puzzles: its answers, accuracy and halting by segment, and its hidden states.

    Args:
        model: a model, or what :func:`hrm.load` takes.
        data: a data set, or a data folder; not the puzzles of the training.
        out: a folder for ``report.html``, ``analysis.json``, pictures and animated boards.
        split: the split of a data folder.
        puzzles: number of puzzles whose hidden states are analysed.
        boards: number of puzzles whose boards and trajectories are shown.
        baseline_steps: training steps of the recurrent and of the feed-forward baseline; 0 leaves them out. They are
            trained on the train split of the data folder.
        max_steps: most segments per puzzle (default: as in training).
        max_examples: number of examples for accuracy and halting, from the start; None uses all.
        seed: seed of the untrained model and of the baselines.
        force: replace these files.
        puzzle_emb: as for :func:`evaluate`.
        device: where a model given by name runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called with the stage and how much of it is done.

    Raises:
        InputError: as :func:`evaluate`; or the data folder has no train split for the baselines.
    """
    if baseline_steps < 0:
        raise InputError(f"baseline_steps is {baseline_steps}, expected the number of training steps, or 0")
    if out is not None:
        from hrm.analysis.report import FILES

        out = _results_folder(out, (*FILES, *(f"board-{number + 1}.gif" for number in range(boards))), force)
    _require_known(model)
    dataset = _open(data, split)
    with _loaded(model, dataset, puzzle_emb, device, one_process="hrm analyze") as (loaded, _):
        from hrm.analysis import analyze as run_analysis

        analysis = run_analysis(
            loaded,
            _task_of(dataset),
            dataset,
            _open(dataset.folder, "train") if baseline_steps else None,
            max_steps=max_steps,
            max_examples=max_examples,
            puzzles=puzzles,
            boards=boards,
            baseline_steps=baseline_steps or 1,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        from hrm.analysis import write_report

        write_report(analysis, out, f"{_name_of(model)} on {dataset.folder} ({dataset.split})")
    return analysis


def _texts(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as the text of overrides: ``{"arch": {"H_cycles": 2}}`` becomes ``{"arch.H_cycles": "2"}``."""
    texts: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            texts |= _texts(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, bool):
            texts[prefix + name] = {None: "null", True: "true", False: "false"}[value]
        elif isinstance(value, list | tuple):
            texts[prefix + name] = json.dumps(value)
        else:
            texts[prefix + name] = str(value)
    return texts


def _path(path: Path | str) -> Path:
    """``path`` with ``~`` expanded: shells do not expand it within ``--out=~/x``."""
    return Path(path).expanduser()


def _results_folder(out: Path | str | None, names: Iterable[str] = (), force: bool = False) -> Path | None:
    """Check, before the work, that results can be written to the folder ``out``.

    Raises:
        InputError: the folder has one of the files ``names``, and ``force`` is not set.
        NotADirectoryError, PermissionError: see :func:`hrm.files.require_writable`.
    """
    if out is None:
        return None
    folder = _path(out)
    require_writable(folder)
    for name in names:
        if not force and (folder / name).exists():
            raise InputError(f"{folder / name} exists already; choose another --out, or pass --force to replace it")
    return folder


def _calibration_folder(model: Model) -> Path | None:
    """The folder beside the weights of a model given by name; None for a model object.

    Raises:
        InputError: the model comes with the package, or from the hub.
    """
    if not isinstance(model, str | Path):
        return None
    folder = calibration_folder(model)
    if folder == models.folder(str(model)):
        raise InputError(f"{model} comes with the package, which keeps its own {CALIBRATION_FILE}; add --out DIR")
    if not folder.exists() and "/" in str(model):
        raise InputError(f"{model} is not a local folder to write {CALIBRATION_FILE} to; add --out DIR")
    require_writable(folder)
    return folder


def _name_of(model: Model) -> str:
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def _require_known(model: Model) -> None:
    if isinstance(model, str | Path):
        require_known(str(model))


def _check_halting(model: Model, halt: str | Halting) -> None:
    check_halting(halt, model if isinstance(model, str | Path) else model.folder)


def _folder_of(data: Data) -> Path:
    return _path(data) if isinstance(data, str | Path) else data.folder


def _open(data: Data, split: str) -> PuzzleDataset:
    return open_dataset(_path(data), split) if isinstance(data, str | Path) else data


@contextmanager
def _loaded(
    model: Model, dataset: PuzzleDataset | None, puzzle_emb: PuzzleEmb, device: str, one_process: str | None = None
) -> Iterator[tuple[HRM, bool]]:
    """The model, loaded if it is given by name, and whether this process is the one that writes.

    Args:
        model: a model, or what :func:`hrm.load` takes.
        dataset: the data that the puzzle embedding has to fit.
        puzzle_emb: how it is made to fit.
        device: where a model given by name goes.
        one_process: the command's name if it does not run under torchrun.
    """
    if one_process and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{one_process} runs in one process; start it without torchrun")
    from hrm.training.distributed import joined
    from hrm.weights import load

    if not isinstance(model, str | Path):
        import torch.distributed as dist

        yield model, not dist.is_initialized() or dist.get_rank() == 0
        return
    with joined(device) as world:
        if dataset is None:
            yield load(model, world.device), world.is_main
            return
        # "strict" keeps the rows of the checkpoint, so that check_fits reports how they differ from the data's.
        adjusts = puzzle_emb != "strict"
        yield (
            load(
                model,
                world.device,
                puzzle_emb=puzzle_emb,
                num_puzzle_identifiers=dataset.metadata.num_puzzle_identifiers if adjusts else None,
                seq_len=dataset.metadata.seq_len,
                identifiers=names_fingerprint(dataset) if adjusts else None,
            ),
            world.is_main,
        )


def task_of_model(model: Model, loaded: HRM) -> PuzzleTask:
    """The task that the checkpoint of ``model`` names, or the one with the shape of ``loaded``, its model object."""
    from hrm.weights import read_extra

    name = read_extra(model).get("task") if isinstance(model, str | Path) else None
    return task_of(loaded.config.vocab_size, loaded.config.seq_len, name)


def _task_of(dataset: PuzzleDataset) -> PuzzleTask:
    return task_of(dataset.metadata.vocab_size, dataset.metadata.seq_len, dataset.metadata.task)


def _powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... below ``most``, and ``most``."""
    return [2**exponent for exponent in range((most - 1).bit_length())] + [most]

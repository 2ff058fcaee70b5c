"""Run an analysis: answers, states, trajectories and baselines of one model."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import torch

from hrm.analysis.answers import Answers, answers_by_segment, difficulty
from hrm.analysis.baselines import Baseline, Kind, train_baseline
from hrm.analysis.results import Analysis, BaselineRun, Trajectories
from hrm.analysis.states import (
    LEVELS,
    Covariance,
    Level,
    principal_components,
    require_two_states,
    residual,
    state_updates,
    untrained,
)
from hrm.data.format import PuzzleDataset
from hrm.data.task import PuzzleTask
from hrm.inference.examples import LabelledPuzzles
from hrm.inference.segments import evaluating, require_positive
from hrm.model import HRM, Batch
from hrm.progress import Progress, begun, silent

_SEGMENTS_OF_BASELINES = 4  # a baseline has as many updates as this many segments, with gradients through all of them


def analyze(
    model: HRM,
    task: PuzzleTask,
    dataset: PuzzleDataset,
    train_dataset: PuzzleDataset | None = None,
    *,
    max_steps: int | None = None,
    max_examples: int | None = 1000,
    puzzles: int = 100,
    boards: int = 6,
    baseline_steps: int = 300,
    seed: int = 0,
    progress: Progress = silent,
) -> Analysis:
    """Measure a model's answers and states on labelled puzzles.

    Args:
        model: the model; its mode is restored.
        task: the task of the puzzles.
        dataset: puzzles the model was not trained on.
        train_dataset: puzzles to train the baselines on; None trains no baseline.
        max_steps: number of segments; None is the model's ``halt_max_steps``.
        max_examples: number of puzzles for accuracy and halting, from the start of the split; None is all.
        puzzles: how many of these to use for residuals and participation ratios (100 in the paper).
        boards: how many of these to show as trajectories and boards.
        baseline_steps: training steps of each baseline.
        seed: seed of the untrained model and of the baselines.
        progress: receives the name of each part of the work, and how much of it is done.

    Raises:
        InputError: data and model do not fit, no puzzle has labels, or a number is not positive.
    """
    require_positive(puzzles=puzzles, boards=boards, baseline_steps=baseline_steps)
    require_two_states(model)
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    answers = answers_by_segment(model, dataset, max_steps=max_steps, max_examples=max_examples, progress=progress)
    puzzles = min(puzzles, len(answers.inputs))
    batch = _batch(dataset, puzzles, model)
    spectra: dict[tuple[bool, Level], np.ndarray] = {}
    updates_per_segment = model.config.H_cycles * (model.config.L_cycles + 1)
    with evaluating(model):
        updates = max_steps * updates_per_segment
        residuals, trained_covariances = _states(
            model, batch, max_steps, begun(progress, "states of the model", updates)
        )
        report = begun(progress, "states of an untrained model", updates)
        _, untrained_covariances = _states(untrained(model, seed), batch, max_steps, report)
        for trained, covariances in ((True, trained_covariances), (False, untrained_covariances)):
            spectra |= {(trained, level): covariance.eigenvalues() for level, covariance in covariances.items()}
        shown = _chosen(answers, puzzles, boards)
        trajectories = _trajectories(model, {name: values[shown] for name, values in batch.items()}, max_steps)
    baselines: dict[Kind, BaselineRun] = {}
    if train_dataset is not None:
        depth = updates_per_segment * min(max_steps, _SEGMENTS_OF_BASELINES)
        labels = torch.from_numpy(answers.labels[:puzzles])
        for kind in get_args(Kind):
            report = begun(progress, f"training the {kind} baseline", baseline_steps)
            baseline, loss = _trained_baseline(model, kind, depth, train_dataset, baseline_steps, seed, report)
            baselines[kind] = _baseline_run(baseline, loss, batch, labels)
    name, values = difficulty(task, answers.inputs, answers.labels)
    return Analysis(
        task=task,
        model=model.config.model_dump(),
        parameters=sum(one.numel() for one in model.parameters()),
        answers=answers,
        difficulty_name=name,
        difficulty=values,
        residuals=residuals,
        updates_per_segment=updates_per_segment,
        spectra=spectra,
        puzzles=puzzles,
        shown=shown,
        trajectories=trajectories,
        baselines=baselines,
        baseline_steps=baseline_steps if baselines else 0,
    )


def _batch(dataset: PuzzleDataset, puzzles: int, model: HRM) -> Batch:
    """The first labelled puzzles, in the order of :class:`hrm.inference.examples.LabelledPuzzles`."""
    device = next(model.parameters()).device
    first = LabelledPuzzles(model, dataset, most=puzzles).puzzles
    return {
        "inputs": torch.from_numpy(np.stack([one.inputs for one in first])).int().to(device),
        "puzzle_identifiers": torch.tensor([one.identifier for one in first], dtype=torch.int32, device=device),
    }


def _states(
    model: HRM, batch: Batch, max_steps: int, report: Callable[[int], None]
) -> tuple[dict[Level, tuple[np.ndarray, np.ndarray]], dict[Level, Covariance]]:
    """Residuals and covariances by level, over all positions, puzzles and updates; ``report`` gets each number."""
    updates: dict[Level, list[int]] = {level: [] for level in LEVELS}
    residuals: dict[Level, list[float]] = {level: [] for level in LEVELS}
    covariances: dict[Level, Covariance] = {level: Covariance(model.config.hidden_size) for level in LEVELS}
    for number, update in enumerate(state_updates(model, batch, max_steps), 1):
        updates[update.level].append(number)
        residuals[update.level].append(residual(update.before, update.after))
        covariances[update.level].add(update.after)
        report(number)
    return {level: (np.array(updates[level]), np.array(residuals[level])) for level in LEVELS}, covariances


def _chosen(answers: Answers, puzzles: int, boards: int) -> np.ndarray:
    """Puzzles to show, from the first to halt to the last; a third of them wrong, if any are."""
    order = np.argsort(answers.halting_steps[:puzzles], kind="stable")
    right = answers.right_when_halting[:puzzles][order]
    wrong = _spread(order[~right], max(1, boards // 3))
    good = _spread(order[right], boards - len(wrong))
    return np.concatenate([good, wrong])


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` of ``items``, evenly spaced, the first and the last included."""
    if not len(items) or not count:
        return items[:0]
    return items[np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def _trajectories(model: HRM, batch: Batch, max_steps: int) -> dict[Level, Trajectories]:
    states: dict[Level, list[np.ndarray]] = {level: [] for level in LEVELS}
    for update in state_updates(model, batch, max_steps):
        if not states[update.level]:
            states[update.level].append(update.before.float().flatten(1).cpu().numpy())
        states[update.level].append(update.after.float().flatten(1).cpu().numpy())
    trajectories: dict[Level, Trajectories] = {}
    for level, updates in states.items():
        path = np.stack(updates, 1)
        points, variance = principal_components(path.reshape(-1, path.shape[-1]))
        trajectories[level] = Trajectories(points.reshape(*path.shape[:2], -1), variance)
    return trajectories


def _trained_baseline(
    model: HRM, kind: Kind, depth: int, dataset: PuzzleDataset, steps: int, seed: int, report: Callable[[int], None]
) -> tuple[Baseline, float]:
    """A trained baseline on the model's device, and its loss at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        baseline = Baseline(model.config, depth, kind).to(next(model.parameters()).device)
    loss = train_baseline(baseline, dataset, steps=steps, seed=seed, progress=lambda step, _: report(step))
    return baseline, loss


def _baseline_run(baseline: Baseline, loss: float, batch: Batch, labels: torch.Tensor) -> BaselineRun:
    with torch.no_grad():
        residuals = np.array([residual(before, after) for before, after in baseline.states(batch)])
        tokens = baseline(batch).argmax(-1).cpu()
    right = ((tokens == labels) | (labels < 0)).all(-1)
    return BaselineRun(residuals, loss, float(right.float().mean()))

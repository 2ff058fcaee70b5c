"""The two protocols of evaluation: all segments for every row, as published, or each row until it halts."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from hrm.data.format import IGNORE_LABEL
from hrm.data.task import PuzzleTask
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.engine import Engine, Puzzle, Result, Trajectories
from hrm.inference.halting import Halting
from hrm.inference.metrics import ANY_RIGHT, metric_of, selection_names
from hrm.inference.segments import evaluating, segments
from hrm.losses import LossType, act_loss
from hrm.model import HRM, Batch

Batches = Iterator[tuple[np.ndarray, Batch]]
"""Example numbers and a batch, which may have more rows, of padding."""


class EvaluatedBatch(NamedTuple):
    """A batch after its last segment.

    Attributes:
        numbers: ``[n]`` int64, of its examples.
        sums: of the metrics, over the rows with labels, and their ``count``.
        tokens: ``[rows >= n, seq_len]``, the answers.
        q_halt: ``[rows]``, the last logits.
        steps: ``[rows]``, the segment where each row halts, or would halt by Q.
    """

    numbers: np.ndarray
    sums: dict[str, float]
    tokens: torch.Tensor
    q_halt: torch.Tensor
    steps: torch.Tensor


@torch.no_grad()
def run_all_segments(
    model: HRM, batches: Batches, max_steps: int, loss_type: LossType, progress: Callable[[int], None]
) -> Generator[EvaluatedBatch, None, None]:
    """The published protocol: ``max_steps`` segments for every row.

    The sums are those of :data:`hrm.inference.metrics.PUBLISHED`. ``progress`` is called with the number of segments
    of all batches so far.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        for done, (numbers, batch) in enumerate(batches):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = batch["labels"]
            early, early_steps = torch.zeros_like(labels, dtype=torch.int64), torch.zeros_like(labels[:, 0])
            for segment in segments(model, batch, max_steps):
                early = torch.where(segment.halts[:, None], segment.tokens, early)
                early_steps = torch.where(segment.halts, segment.step, early_steps)
                progress(done * max_steps + segment.step)
            halted = replace(segment.carry, halted=torch.ones_like(segment.halts))  # act_loss counts halted rows
            _, metrics = act_loss(halted, segment.outputs, loss_type)
            labelled = labels != IGNORE_LABEL
            counted = labelled.any(-1)
            exact = ((early == labels) | ~labelled).all(-1)
            metrics |= {
                "early_exact_accuracy": (counted & exact).sum(),
                "early_steps": torch.where(counted, early_steps, 0).sum(),
            }
            values = torch.stack([value.float() for value in metrics.values()]).tolist()  # one wait for a GPU
            q_halt = segment.outputs["q_halt_logits"]
            yield EvaluatedBatch(numbers, dict(zip(metrics, values)), segment.tokens, q_halt, early_steps)


def run_until_halted(
    model: HRM,
    batches: Batches,
    slots: int,
    max_steps: int,
    halting: Halting,
    task: PuzzleTask | None = None,
    damping: AdaptiveDamping | None = None,
) -> Generator[EvaluatedBatch, None, None]:
    """Each row until it halts, at most ``max_steps`` segments; another row then takes its slot.

    The sums are those of :data:`hrm.inference.metrics.EARLY`. A rule that checks answers needs the task.
    """
    with Engine(model, slots, max_steps, halt=halting, task=task, damping=damping) as engine:
        for numbers, labels, results in _solved(engine, batches):
            yield _evaluated(numbers, labels, results, np.array([result.steps for result in results]))


def run_trajectories(
    model: HRM,
    batches: Batches,
    slots: int,
    max_steps: int,
    halting: Halting,
    trajectories: Trajectories,
    task: PuzzleTask | None,
    damping: AdaptiveDamping | None = None,
) -> Generator[EvaluatedBatch, None, None]:
    """Several trajectories of each row, each until it halts.

    The sums are those of :data:`hrm.inference.metrics.EARLY`, with the segments of all trajectories, and of
    :func:`hrm.inference.metrics.selection_names`.
    """
    names = selection_names(task)
    engine = Engine(model, slots, max_steps, halt=halting, task=task, trajectories=trajectories, damping=damping)
    with engine:
        for numbers, labels, results in _solved(engine, batches):
            segments = [sum(one.steps for one in result.trajectories) or result.steps for result in results]
            batch = _evaluated(numbers, labels, results, np.array(segments))
            batch.sums.update(dict.fromkeys(names, 0.0))
            for answer, result in zip(labels, results):
                if (answer != IGNORE_LABEL).any():
                    for name, right in _right_by_rule(answer, result, names).items():
                        batch.sums[name] += right
            yield batch


def _right_by_rule(labels: np.ndarray, result: Result, names: tuple[str, ...]) -> dict[str, bool]:
    """Whether the answer is right that each rule chooses, and whether any is: by the name of the metric."""

    def is_right(tokens: np.ndarray) -> bool:
        return bool(((tokens == labels) | (labels == IGNORE_LABEL)).all())

    if not result.trajectories:  # it was its own answer
        return dict.fromkeys(names, is_right(result.tokens))
    right = {one.number: is_right(one.tokens) for one in result.trajectories}
    by_rule = {metric_of(rule): right[number] for rule, number in result.chosen.items()} | {
        ANY_RIGHT: any(right.values())
    }
    return {name: by_rule[name] for name in names}


def _solved(engine: Engine, batches: Batches) -> Generator[tuple[np.ndarray, np.ndarray, list[Result]], None, None]:
    """For each batch the numbers of its examples, their labels and results."""
    running: deque[tuple[np.ndarray, np.ndarray]] = deque()  # numbers and labels of batches in the engine

    def puzzles() -> Iterator[Puzzle]:
        for numbers, batch in batches:
            if len(numbers):  # the rest is padding
                inputs, labels, identifiers = (
                    batch[name][: len(numbers)].numpy() for name in ("inputs", "labels", "puzzle_identifiers")
                )
                running.append((numbers, labels))
                seeds = numbers.tolist()
                yield from map(Puzzle, inputs, identifiers.tolist(), seeds)

    solved = engine.solve(puzzles())
    for first in solved:
        numbers, labels = running.popleft()
        results = [first, *islice(solved, len(numbers) - 1)]
        for result in results:
            if result.error is not None:
                raise result.error
        yield numbers, labels, results


def _evaluated(numbers: np.ndarray, labels: np.ndarray, results: list[Result], segments: np.ndarray) -> EvaluatedBatch:
    """A batch of results; ``segments``: ``[n]``, what is counted as ``steps``."""
    tokens = np.stack([result.tokens for result in results])
    q_halt, steps = np.array([(result.q_halt, result.steps) for result in results]).T
    sums = _sums(tokens, labels, q_halt, segments)
    return EvaluatedBatch(numbers, sums, *map(torch.from_numpy, (tokens, q_halt, steps)))


def _sums(tokens: np.ndarray, labels: np.ndarray, q_halt: np.ndarray, steps: np.ndarray) -> dict[str, float]:
    """Sums over rows: ``[n, seq_len]`` answers and labels, ``[n]`` logits and segments."""
    labelled = labels != IGNORE_LABEL
    counts = labelled.sum(1)
    right = ((tokens == labels) & labelled).sum(1)
    exact, counted = right == counts, counts > 0
    return {
        "count": float(counted.sum()),
        "exact_accuracy": float((exact & counted).sum()),
        "accuracy": float((right / np.maximum(counts, 1)).sum()),
        "q_halt_accuracy": float((((q_halt >= 0) == exact) & counted).sum()),
        "steps": float(steps[counted].sum()),
    }

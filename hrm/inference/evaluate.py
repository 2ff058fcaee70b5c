"""Measuring a model on a data set: as published, every puzzle through all segments, or each until it halts."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hrm.compatibility import check_fits
from hrm.data.arc import SEQ_LEN, VOCAB_SIZE
from hrm.data.batches import evaluation_batches
from hrm.data.format import IGNORE_LABEL, PuzzleDataset
from hrm.errors import InputError
from hrm.files import read_json, write_json, written_beside
from hrm.inference.arc_voting import ArcVotes
from hrm.inference.engine import Engine, Puzzle
from hrm.inference.halting import Halting, halts_at_the_end, parse_halting
from hrm.inference.metrics import EARLY, PUBLISHED, Metrics, MetricSums
from hrm.inference.segments import evaluating, require_positive, segments
from hrm.losses import LossType, act_loss
from hrm.model import HRM, Batch
from hrm.progress import Progress, silent

_VOTED_AT_ONCE = 4096


def evaluate(
    model: HRM,
    dataset: PuzzleDataset,
    *,
    batch_size: int,
    max_steps: int | None = None,
    halt: str | Halting = "fixed",
    max_examples: int | None = None,
    out: Path | str | None = None,
    loss_type: LossType = "stablemax_cross_entropy",
    progress: Progress = silent,
) -> Metrics:
    """Evaluate ``model`` on a split, on the device it is on; under torchrun each process takes its share.

    Args:
        model: its mode (training, evaluation) is restored.
        dataset: from :func:`hrm.data.format.open_dataset`; of the model's seq_len, vocab_size and identifiers.
        batch_size: rows of all processes together; no metric depends on it.
        max_steps: segments for each row, or the most; None is the model's ``halt_max_steps``.
        halt: ``"fixed"`` is the published protocol, all segments for every row. Any other rule of :class:`hrm.Engine`
            ends a row where it halts, and its place goes to the next one.
        max_examples: only this many, from the start.
        out: a folder for ``predictions.npz``: ``inputs``, ``labels`` (both as in the data folder) and ``predictions``
            ``[n, seq_len]``; ``puzzle_identifiers``, ``q_halt`` (last logits) and ``early_steps`` ``[n]``.
            And for ``submission.json``, the ARC answers in Kaggle's format.
        loss_type: of ``lm_loss``.
        progress: told how many examples are done, in the first process.

    Returns:
        The metrics of all processes; ``arc_pass`` only in the first one, which counts the votes.

    Raises:
        InputError: data set and model don't fit each other, a file is damaged, or a number is impossible.
    """
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    require_positive(batch_size=batch_size, max_steps=max_steps, max_examples=max_examples)
    halting = parse_halting(halt)
    check_fits(model, dataset)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # where that fails, it is before the work
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    total = min(dataset.num_examples, max_examples or dataset.num_examples)
    if batch_size > total:
        batch_size = -(-total // world) * world  # more would be padding
    # A vote needs all variants of a task: the score of a part of the split would be of no use.
    votes = _votes(dataset) if total == dataset.num_examples else None
    rows = _Rows(total, model.config.seq_len, model.config.vocab_size) if out is not None or votes else None

    sums = MetricSums(PUBLISHED if halting is halts_at_the_end else EARLY)
    start = time.perf_counter()
    batches = evaluation_batches(dataset, batch_size, rank, world, max_examples)

    def tell(done: float) -> None:
        if rank == 0:
            progress("evaluating", min(int(done), total), total)

    done = 0
    tell(done)
    if halting is halts_at_the_end:
        with evaluating(model), torch.no_grad():
            for numbers, batch in batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                metrics, predictions, q_halt, early_steps = _evaluate_batch(
                    model, batch, max_steps, loss_type, lambda step: tell(done + batch_size * step / max_steps)
                )
                sums.add(metrics)
                if rows is not None:
                    rows.set(numbers, predictions, q_halt, early_steps)
                done += batch_size
    else:
        for halted, metrics in _evaluate_halting(model, batches, rows, batch_size // world, max_steps, halting):
            sums.add(metrics)
            done += halted * world
            tell(done)
    sums.add_other_processes(device)
    seconds = time.perf_counter() - start

    arc_pass = None
    if rows is not None:
        rows.complete(device)
        if rank == 0:
            arrays = rows.arrays(dataset)
            if votes is not None:
                arc_pass = _voted(votes, dataset.identifiers(), arrays)
            if out is not None:
                _save(Path(out), arrays, votes)
    return sums.metrics(total / seconds, arc_pass)


def _evaluate_batch(
    model: HRM, batch: Batch, max_steps: int, loss_type: LossType, tell: Callable[[int], None]
) -> tuple[dict[str, float], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over the rows with labels; predictions ``[B, seq_len]``, q_halt and early steps ``[B]`` of all rows.

    ``tell`` is called with the number of segments done.
    """
    labels = batch["labels"]
    early, early_steps = torch.zeros_like(labels, dtype=torch.int64), torch.zeros_like(labels[:, 0])
    for segment in segments(model, batch, max_steps):
        early = torch.where(segment.halts[:, None], segment.tokens, early)
        early_steps = torch.where(segment.halts, segment.step, early_steps)
        tell(segment.step)
    done = replace(segment.carry, halted=torch.ones_like(segment.halts))  # act_loss counts the rows that have halted
    _, metrics = act_loss(done, segment.outputs, loss_type)
    labelled = labels != IGNORE_LABEL
    counted = labelled.any(-1)
    exact = ((early == labels) | ~labelled).all(-1)
    metrics |= {
        "early_exact_accuracy": (counted & exact).sum(),
        "early_steps": torch.where(counted, early_steps, 0).sum(),
    }
    sums = dict(zip(metrics, torch.stack([value.float() for value in metrics.values()]).tolist()))  # one wait for a GPU
    return sums, segment.tokens, segment.outputs["q_halt_logits"], early_steps


def _evaluate_halting(
    model: HRM,
    batches: Iterator[tuple[np.ndarray, Batch]],
    rows: "_Rows | None",
    slots: int,
    max_steps: int,
    halting: Halting,
) -> Iterator[tuple[int, dict[str, float]]]:
    """How many rows have halted since the last time, and what they add to the sums."""
    asked: deque[tuple[np.ndarray, np.ndarray]] = deque()  # numbers and labels of the batches under way

    def puzzles() -> Iterator[Puzzle]:
        for numbers, batch in batches:
            if len(numbers):  # (padding comes after those)
                inputs, labels, identifiers = (
                    batch[name][: len(numbers)].numpy() for name in ("inputs", "labels", "puzzle_identifiers")
                )
                asked.append((numbers, labels))
                yield from map(Puzzle, inputs, identifiers.tolist())

    with Engine(model, slots, max_steps, halt=halting) as engine:
        solved = engine.solve(puzzles())
        for first in solved:
            numbers, labels = asked.popleft()
            results = [first, *islice(solved, len(numbers) - 1)]
            for result in results:
                if result.error is not None:
                    raise result.error
            tokens = np.stack([result.tokens for result in results])
            q_halt, steps = np.array([(result.q_halt, result.steps) for result in results]).T
            if rows is not None:
                rows.set(numbers, *map(torch.from_numpy, (tokens, q_halt, steps)))
            labelled = labels != IGNORE_LABEL
            counts = labelled.sum(1)
            right = ((tokens == labels) & labelled).sum(1)
            exact, counted = right == counts, counts > 0
            yield (
                len(results),
                {
                    "count": float(counted.sum()),
                    "exact_accuracy": float((exact & counted).sum()),
                    "accuracy": float((right / np.maximum(counts, 1)).sum()),
                    "q_halt_accuracy": float((((q_halt >= 0) == exact) & counted).sum()),
                    "steps": float(steps[counted].sum()),
                },
            )


class _Rows:
    """What the model said to each example, by example number."""

    def __init__(self, total: int, seq_len: int, vocab_size: int) -> None:
        dtype = torch.uint8 if vocab_size <= 256 else torch.int32
        self.predictions = torch.zeros(total, seq_len, dtype=dtype, device="cpu")
        self.q_halt = torch.zeros(total, dtype=torch.float32, device="cpu")
        self.early_steps = torch.zeros(total, dtype=torch.int32, device="cpu")

    def set(self, numbers: np.ndarray, *values: torch.Tensor) -> None:
        """Note the rows ``numbers``; ``values`` may go on with padding."""
        at = torch.from_numpy(numbers)
        for own, given in zip((self.predictions, self.q_halt, self.early_steps), values, strict=True):
            own[at] = given[: len(at)].to(own)

    def complete(self, device: torch.device) -> None:
        """Take in the rows of the other processes."""
        if dist.is_initialized():
            for name in ("predictions", "q_halt", "early_steps"):
                whole = getattr(self, name).to(device)
                dist.all_reduce(whole)  # each row is 0 in all processes but one
                setattr(self, name, whole.cpu())

    def arrays(self, dataset: PuzzleDataset) -> dict[str, np.ndarray]:
        """These rows with the examples they belong to, as ``predictions.npz`` has them."""
        total, sets = len(self.q_halt), dataset.sets
        identifiers = [np.repeat(one.puzzle_identifiers, np.diff(one.puzzle_indices)) for one in sets]
        return {
            "inputs": np.concatenate([one.inputs for one in sets])[:total],
            "labels": np.concatenate([one.labels for one in sets])[:total],
            "puzzle_identifiers": np.concatenate(identifiers)[:total],
            "predictions": self.predictions.numpy(),
            "q_halt": self.q_halt.numpy(),
            "early_steps": self.early_steps.numpy(),
        }


def _votes(dataset: PuzzleDataset) -> ArcVotes | None:
    file = dataset.file("test_puzzles.json")
    is_arc = (dataset.metadata.vocab_size, dataset.metadata.seq_len) == (VOCAB_SIZE, SEQ_LEN)
    return ArcVotes(read_json(file)) if is_arc and dataset.split == "test" and file.is_file() else None


def _voted(votes: ArcVotes, names: list[str], arrays: dict[str, np.ndarray]) -> dict[int, float] | None:
    """Count the votes, in the order of the examples; the scores."""
    highest = int(arrays["puzzle_identifiers"].max(initial=0))
    if not isinstance(names, list) or highest >= len(names):
        known = f"{len(names)} names" if isinstance(names, list) else "no list of names"
        raise InputError(
            f"identifiers.json has {known} and the examples the puzzle identifier {highest}, so their tasks are not "
            "known and cannot be voted on; build the data set again"
        )
    of_rows = [names[identifier] for identifier in arrays["puzzle_identifiers"]]
    for start in range(0, len(of_rows), _VOTED_AT_ONCE):
        rows = slice(start, start + _VOTED_AT_ONCE)
        votes.add(of_rows[rows], arrays["inputs"][rows], arrays["predictions"][rows], arrays["q_halt"][rows])
    return votes.pass_at() or None  # no output may be known


def _save(folder: Path, arrays: dict[str, np.ndarray], votes: ArcVotes | None) -> None:
    with written_beside(folder / "predictions.npz") as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its other keyword is not among them
    if votes is not None:
        write_json(folder / "submission.json", votes.submission())

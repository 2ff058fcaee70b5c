"""Measuring a model on a data set."""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from hrm.compatibility import check_fits
from hrm.data.batches import evaluation_batches
from hrm.data.format import PuzzleDataset
from hrm.data.task import PuzzleTask
from hrm.files import write_json
from hrm.inference.arc_voting import count_votes, votes_on
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.engine import Trajectories
from hrm.inference.halting import Halting, halts_at_the_end, parse_halting
from hrm.inference.metrics import EARLY, PUBLISHED, Metrics, MetricSums, selection_names
from hrm.inference.predictions import Predictions, save_predictions
from hrm.inference.protocols import run_all_segments, run_trajectories, run_until_halted
from hrm.inference.segments import require_positive
from hrm.losses import LossType
from hrm.model import HRM
from hrm.progress import Progress, silent


def evaluate(
    model: HRM,
    dataset: PuzzleDataset,
    *,
    batch_size: int,
    max_steps: int | None = None,
    halt: str | Halting = "fixed",
    max_examples: int | None = None,
    trajectories: int | Trajectories = 1,
    damping: str | AdaptiveDamping | None = None,
    task: PuzzleTask | None = None,
    out: Path | str | None = None,
    loss_type: LossType = "stablemax_cross_entropy",
    progress: Progress = silent,
) -> Metrics:
    """Evaluate ``model`` on a split, on its device; under torchrun each process takes its share.

    Args:
        model: its mode (training, evaluation) is restored.
        dataset: from :func:`hrm.data.format.open_dataset`, with the model's seq_len, vocab_size and identifiers.
        batch_size: rows of all processes together; no metric depends on it.
        max_steps: segments for each row, or the most; None is the model's ``halt_max_steps``.
        halt: ``"fixed"`` is the published protocol, all segments for every row. With any other rule of
            :class:`hrm.Engine` a row that halts frees its slot for the next row.
        max_examples: evaluate only the first ones.
        trajectories: attempts at each example; ``steps`` then counts the segments of all of them.
        damping: as for :class:`hrm.Engine`.
        task: checks the answers, for the rule ``check``; it may be None without such a rule.
        out: a folder for ``predictions.npz``: ``inputs``, ``labels`` (both as in the data folder) and ``predictions``
            ``[n, seq_len]``; ``puzzle_identifiers``, ``q_halt`` (last logits) and ``early_steps`` ``[n]``.
            For ARC also for ``submission.json``, the answers in Kaggle's format.
        loss_type: the token loss of ``lm_loss``.
        progress: called with the number of evaluated examples, in the first process.

    Returns:
        The metrics of all processes; ``arc_pass`` only in the first one, which counts the votes.

    Raises:
        InputError: data set and model don't fit each other, a file is damaged, or a number is invalid.
    """
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    require_positive(batch_size=batch_size, max_steps=max_steps, max_examples=max_examples)
    halting, settings = parse_halting(halt, model.folder), replace(Trajectories.of(trajectories), stop=False)
    damping = AdaptiveDamping.of(damping)
    check_fits(model, dataset)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # if this fails, it fails before the work
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    total = min(dataset.num_examples, max_examples or dataset.num_examples)
    if batch_size > total:
        batch_size = -(-total // world) * world  # more would be padding
    # A vote needs all variants of a task: the score of a part of the split would mean nothing.
    votes = votes_on(dataset) if total == dataset.num_examples else None
    predictions = Predictions(model, total) if out is not None or votes else None

    def report(segments: int) -> None:
        """``segments``: of batches so far."""
        if rank == 0:
            progress("evaluating", min(batch_size * segments // max_steps, total), total)

    start = time.perf_counter()
    report(0)
    batches = evaluation_batches(dataset, batch_size, rank, world, max_examples)
    each = batch_size // world
    if settings.count > 1:
        sums = MetricSums((*EARLY, *selection_names(task)))
        evaluated = run_trajectories(model, batches, each, max_steps, halting, settings, task, damping)
    elif halting is halts_at_the_end and damping is None:
        sums, evaluated = MetricSums(PUBLISHED), run_all_segments(model, batches, max_steps, loss_type, report)
    else:
        sums, evaluated = MetricSums(EARLY), run_until_halted(model, batches, each, max_steps, halting, task, damping)
    with closing(evaluated):
        for done, batch in enumerate(evaluated, 1):
            sums.add(batch.sums)
            if predictions is not None:
                predictions.set(batch.numbers, batch.tokens, batch.q_halt, batch.steps)
            report(done * max_steps)
    sums.add_other_processes(device)
    seconds = time.perf_counter() - start

    arc_pass = None
    if predictions is not None:
        predictions.add_other_processes(device)
        if rank == 0:
            arrays = predictions.arrays(dataset)
            if votes is not None:
                count_votes(votes, dataset.identifiers(), arrays)
                arc_pass = votes.pass_at() or None  # no output may be known
            if out is not None:
                save_predictions(arrays, Path(out))
                if votes is not None:
                    write_json(Path(out) / "submission.json", votes.submission())
    return sums.metrics(total / seconds, arc_pass)

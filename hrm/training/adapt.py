"""Adapting a trained model to unseen puzzles: new puzzle embeddings are fitted, all weights stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch

from hrm.act import draw_min_steps
from hrm.compatibility import check_fits
from hrm.data.batches import TrainingSampler
from hrm.data.fingerprint import names_fingerprint
from hrm.data.format import PuzzleDataset
from hrm.errors import InputError
from hrm.inference.segments import modes_of, require_positive, restore_modes
from hrm.losses import LossType
from hrm.model import HRM
from hrm.training.step import Update, segment_loss, train_step
from hrm_kernels.optim import SparseSignSGD


class Adaptation(NamedTuple):
    """How the fit went.

    Attributes:
        steps: number of steps.
        loss_before, loss_after: token loss of the demonstrations, averaged over the first and the last tenth of the
            steps.
    """

    steps: int
    loss_before: float
    loss_after: float


def adapt(
    model: HRM,
    dataset: PuzzleDataset,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 1e-2,
    weight_decay: float = 0.1,
    init: Literal["mean", "zero"] = "mean",
    seed: int = 0,
    loss_type: LossType = "stablemax_cross_entropy",
    progress: Callable[[int, float], None] | None = None,
) -> Adaptation:
    """Fit ``model.puzzle_emb`` to ``dataset`` with SparseSignSGD, as in training; no other weight changes.

    Afterwards the model knows the puzzle identifiers of ``dataset`` (``model.identifiers``), and no others.

    Args:
        model: its puzzle embedding has as many rows as the data have identifiers (:func:`hrm.load` makes them).
        dataset: the demonstrations: the train split of the new puzzles.
        steps: number of steps, each one segment of ``batch_size`` rows.
        batch_size: demonstrations in a batch.
        lr, weight_decay: of SparseSignSGD; the defaults are those of the published training.
        init: what the rows of the new puzzles start with: the mean of the model's rows, or 0.
        seed: seed of the order of the demonstrations and of exploration.
        loss_type: of the token loss.
        progress: called with the step and its token loss.

    Raises:
        InputError: data set and model don't fit, the model has no puzzle embedding, a number is impossible, or the
            loss is not finite.
    """
    table = model.puzzle_emb
    if table is None:
        raise InputError("the model has no puzzle embedding (puzzle_emb_ndim 0), so there is nothing to adapt")
    require_positive(steps=steps, batch_size=batch_size)
    if init not in ("mean", "zero"):
        raise InputError(f"init is {init!r}, expected 'mean' or 'zero'")
    if not (lr > 0 and weight_decay >= 0):
        raise InputError(f"lr is {lr} and weight_decay {weight_decay}, expected above 0, and 0 or more")
    check_fits(model, dataset, known=False)

    _reset(table.weights, init, dataset.metadata.blank_identifier_id)
    model.identifiers = names_fingerprint(dataset)
    config, device = model.config, table.weights.device
    sampler, generator = TrainingSampler(dataset, batch_size, seed), torch.Generator("cpu").manual_seed(seed)
    update = Update([SparseSignSGD([table], lr=lr, weight_decay=weight_decay)], batch_size)
    carry, losses = None, []
    with _frozen(model):
        for step in range(1, steps + 1):
            batch = {name: values.to(device) for name, values in sampler.next().items()}
            carry = model.initial_carry(batch) if carry is None else carry
            least = draw_min_steps(batch_size, config.halt_max_steps, config.halt_exploration_prob, generator)
            forward = partial(segment_loss, model, carry, batch, least.to(device), loss_type)
            _, (carry, metrics) = train_step(forward, update)
            losses.append(metrics["lm_loss"].item() / batch_size)
            if not np.isfinite(losses[-1]):
                raise InputError(f"the token loss is {losses[-1]} at step {step}; check the checkpoint, or lower lr")
            if progress is not None:
                progress(step, losses[-1])
    tenth = max(1, steps // 10)
    return Adaptation(steps, float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])))


def _reset(rows: torch.Tensor, init: Literal["mean", "zero"], blank: int) -> None:
    """Set all ``[N, D]`` rows to the start of the fit, except the row of the blank identifier."""
    kept = rows[blank].clone()
    rows.copy_(rows.mean(0).expand_as(rows) if init == "mean" else 0 * rows)
    rows[blank] = kept


@contextmanager
def _frozen(model: HRM) -> Iterator[None]:
    """Training mode, in which only the looked-up rows of the puzzle embedding get gradients."""
    modes, trainable = modes_of(model), [p for p in model.parameters() if p.requires_grad]
    try:
        model.train().requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        restore_modes(modes)

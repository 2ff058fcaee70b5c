"""Baselines without two time scales: the same blocks as a plain recurrent and as a deep feed-forward network."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import nn

from hrm.config import ModelConfig
from hrm.data.batches import TrainingSampler
from hrm.data.format import IGNORE_LABEL, PuzzleDataset
from hrm.errors import InputError
from hrm.families import build
from hrm.losses import LOSSES, LossType
from hrm.model import Batch
from hrm.training.step import Update, train_step
from hrm_kernels.nn import Linear
from hrm_kernels.optim import AdamATan2

Kind = Literal["recurrent", "feed-forward"]


class Baseline(nn.Module):
    """A model's L level applied ``depth`` times in a row, between the same embedding and head, with new weights.

    Args:
        config: configuration of the model to compare with. Puzzle embeddings stay 0.
        depth: number of updates.
        kind: ``"recurrent"`` uses one set of weights and adds the input embedding at each update; ``"feed-forward"``
            has a set of weights for each update and starts from the input embedding.
    """

    def __init__(self, config: ModelConfig, depth: int, kind: Kind) -> None:
        super().__init__()
        self.depth, self.recurrent = depth, kind == "recurrent"
        self.inner = build(config).inner  # only its embedding, head and RoPE tables are used
        self.levels = nn.ModuleList(copy.deepcopy(self.inner.L_level) for _ in range(1 if self.recurrent else depth))
        for module in self.levels.modules():
            if isinstance(module, Linear):
                module.reset_parameters()

    def states(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The states before and after each update, ``[B, P + seq_len, D]``."""
        inner = self.inner
        x = inner.embed(batch)
        z, injection = (inner.L_init.to(x.dtype).expand_as(x), x) if self.recurrent else (x, torch.zeros_like(x))
        for step in range(self.depth):
            before = z
            z = inner.update(self.levels[step % len(self.levels)], before, injection)  # type: ignore[arg-type]
            yield before, z

    def forward(self, batch: Batch) -> torch.Tensor:
        """``[B, seq_len, vocab_size]`` logits after the last update."""
        *_, (_, last) = self.states(batch)
        return self.inner.logits(last)


def train_baseline(
    baseline: Baseline,
    dataset: PuzzleDataset,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 1e-3,
    loss_type: LossType = "stablemax_cross_entropy",
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Train with AdamATan2 on the token loss of the last state, with gradients through all updates.

    Afterwards the baseline is in evaluation mode.

    Args:
        baseline: on any device.
        dataset: the train split.
        steps: number of batches.
        batch_size: rows of a batch.
        lr: learning rate; it rises over the first tenth of the steps, then stays constant.
        loss_type: of the token loss.
        seed: seed of the order of the examples.
        progress: called with the step and its loss.

    Returns:
        The token loss, averaged over the last tenth of the steps.

    Raises:
        InputError: the loss is not finite.
    """
    device, sampler = next(baseline.parameters()).device, TrainingSampler(dataset, batch_size, seed)
    optimizer = AdamATan2(baseline.parameters(), lr=lr, weight_decay=0.1)
    update = Update([optimizer], batch_size)
    losses: list[float] = []
    baseline.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, step / max(1, steps // 10))
        batch = {name: values.to(device) for name, values in sampler.next().items()}
        loss, _ = train_step(partial(_token_loss, baseline, batch, loss_type), update)
        losses.append(loss.item() / batch_size)
        if not math.isfinite(losses[-1]):
            raise InputError(f"the baseline's loss is {losses[-1]} at step {step}; use fewer updates or a lower lr")
        if progress is not None:
            progress(step, losses[-1])
    baseline.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _token_loss(baseline: Baseline, batch: Batch, loss_type: LossType) -> tuple[torch.Tensor, None]:
    """The token loss, averaged over the labels of a row and summed over the rows."""
    labels = batch["labels"]
    losses, _ = LOSSES[loss_type](baseline(batch), labels, IGNORE_LABEL)
    return (losses.sum(-1) / (labels != IGNORE_LABEL).sum(-1).clamp(min=1)).sum(), None

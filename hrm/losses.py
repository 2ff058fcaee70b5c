"""The training loss: token loss, and Q-learning of halting."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

from hrm.batch_checks import as_indices
from hrm.data.format import IGNORE_LABEL
from hrm.errors import InputError
from hrm.model import Carry
from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy_with_argmax

LossType = Literal["stablemax_cross_entropy", "softmax_cross_entropy"]


def softmax_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = IGNORE_LABEL) -> torch.Tensor:
    """``[..., V]`` logits and ``[...]`` labels -> ``[...]`` float32, 0 where the label is ignored."""
    flat = logits.to(torch.promote_types(logits.dtype, torch.float32)).reshape(-1, logits.shape[-1])
    losses = F.cross_entropy(flat, labels.long().reshape(-1), ignore_index=ignore_index, reduction="none")
    return losses.view(labels.shape)


def _softmax_with_argmax(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return softmax_cross_entropy(logits, labels, ignore_index), logits.argmax(-1)


LOSSES: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    "stablemax_cross_entropy": stablemax_cross_entropy_with_argmax,
    "softmax_cross_entropy": _softmax_with_argmax,
}
"""``(logits, labels, ignore_index)`` -> the loss of each token, and the most likely tokens."""


def act_loss(
    carry: Carry,
    outputs: dict[str, torch.Tensor],
    loss_type: LossType = "stablemax_cross_entropy",
    decay: float = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of one training (or evaluation) call, as sums over the rows.

    The loss is ``lm + 0.5 * (q_halt + q_continue)``. lm is the token loss, averaged over the labelled tokens of a row;
    q_halt learns whether the row is exactly right, and q_continue the better Q value after one more segment. Divide by
    the global batch size before ``backward``.

    Args:
        carry, outputs: the results of the model; the labels are the carry's ``current_data["labels"]``.
        loss_type: the token loss.
        decay: the loss of a row in its segment t, counted from 1, has the weight ``decay ** (t - 1)``. Metrics have no
            weights.

    Returns:
        The loss, a scalar, and detached scalars. ``lm_loss``, ``q_halt_loss`` and ``q_continue_loss`` (in training) are
        sums over all rows. ``count``, ``accuracy``, ``exact_accuracy``, ``q_halt_accuracy`` and ``steps`` are sums over
        the rows that have just halted and have labels: divide by ``count``.

    Raises:
        InputError: the batches have no labels, or labels that are not integers.
        ValueError: ``loss_type`` is unknown.

    Source: HRM (arXiv 2506.21734), section 2, "Adaptive computational time"; decay: CGAR (arXiv 2511.08653), whose code
    gives all rows the weight of their mean segment.
    """
    if loss_type not in LOSSES:
        raise ValueError(f"act_loss: loss_type is {loss_type!r}, expected one of {', '.join(LOSSES)}")
    if "labels" not in carry.current_data:
        raise InputError(
            f"act_loss: the carry's data has {', '.join(carry.current_data) or 'nothing'}, expected 'labels' too; pass "
            "them in every batch, also in that of model.initial_carry"
        )
    labels = as_indices("act_loss", "labels", carry.current_data["labels"])
    logits, q_halt = outputs["logits"], outputs["q_halt_logits"]
    labelled = labels != IGNORE_LABEL
    counts = labelled.sum(-1)
    token_losses, tokens = LOSSES[loss_type](logits, labels, IGNORE_LABEL)
    right = labelled & (tokens == labels)
    exact = right.sum(-1) == counts  # also in a row without labels, which the metrics leave out
    parts = {
        "lm_loss": token_losses.sum(-1) / counts.clamp(min=1),
        "q_halt_loss": F.binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="none"),
    }
    if "target_q_continue" in outputs:
        parts["q_continue_loss"] = F.binary_cross_entropy_with_logits(
            outputs["q_continue_logits"], outputs["target_q_continue"], reduction="none"
        )
    sums = {name: rows.sum() for name, rows in parts.items()}
    metrics = {name: total.detach() for name, total in sums.items()}
    if decay != 1:
        weights = decay ** (carry.steps - 1).to(q_halt.dtype)
        sums = {name: (weights * rows).sum() for name, rows in parts.items()}
    loss = sums.pop("lm_loss") + 0.5 * sum(sums.values())

    with torch.no_grad():
        counted = carry.halted & (counts > 0)
        metrics |= {
            "count": counted.sum(),
            "accuracy": torch.where(counted, right.sum(-1).float() / counts.clamp(min=1), 0).sum(),
            "exact_accuracy": (counted & exact).sum(),
            "q_halt_accuracy": (counted & ((q_halt >= 0) == exact)).sum(),
            "steps": torch.where(counted, carry.steps, 0).sum(),
        }
    return loss, metrics

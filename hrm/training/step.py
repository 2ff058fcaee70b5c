"""One optimisation step: the trainer, ``adapt``, the baselines and the benchmarks all take this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor
from torch.optim import Optimizer

from hrm.losses import LossType, act_loss
from hrm.model import HRM, Batch, Carry
from hrm.training.distributed import Gradients

Output = TypeVar("Output")


@dataclass(frozen=True)
class Update:
    """How a step turns a loss into new weights.

    Attributes:
        optimizers: they step one after the other.
        global_batch_size: rows of all processes together; the loss, a sum over rows, is divided by it.
        gradients: all gradients, summed over the processes; None lets the optimisers clear them.
        watch: called with the loss when the gradients are complete, before any weight changes.
    """

    optimizers: Sequence[Optimizer]
    global_batch_size: int
    gradients: Gradients | None = None
    watch: Callable[[Tensor], None] = lambda loss: None

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""
        if self.gradients is not None:
            self.gradients.clear()  # SparseSignSGD forgets its gradients by itself
            return
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def sum_gradients(self) -> None:
        """Sum the gradients over the processes; SparseSignSGD does that by itself."""
        if self.gradients is not None:
            self.gradients.sum_over_processes()


def train_step(compute_loss: Callable[[], tuple[Tensor, Output]], update: Update) -> tuple[Tensor, Output]:
    """Take one optimisation step.

    The step never waits for the device, so a CUDA graph can capture it.

    Args:
        compute_loss: the forward pass; returns the loss, summed over the rows of this process, and anything else that
            the caller needs from it.
        update: what turns the loss into new weights.

    Returns:
        The detached loss, and the second result of ``compute_loss``.
    """
    update.clear_gradients()
    loss, output = compute_loss()
    (loss / update.global_batch_size).backward()
    update.sum_gradients()
    update.watch(loss.detach())
    for optimizer in update.optimizers:
        optimizer.step()
    return loss.detach(), output


def segment_loss(
    model: HRM,
    carry: Carry,
    batch: Batch,
    min_steps: Tensor | None = None,
    loss_type: LossType = "stablemax_cross_entropy",
    decay: float = 1.0,
) -> tuple[Tensor, tuple[Carry, dict[str, Tensor]]]:
    """Run one segment of every row, as training does, and compute its loss.

    Returns:
        The loss, summed over the rows; then the new carry, and the metrics of :func:`hrm.losses.act_loss`.
    """
    carry, outputs = model(carry, batch, min_steps=min_steps)
    loss, metrics = act_loss(carry, outputs, loss_type, decay)
    return loss, (carry, metrics)

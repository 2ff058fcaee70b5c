"""The arguments of a step of AdamATan2."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """A step of all parameters of one dtype on one device; everything but grads and lr is changed in place.

    Attributes:
        params, grads, exp_avgs, exp_avg_sqs: at least one of each, the same shapes.
        steps: float32 scalars: on the device if ``capturable``, else on the CPU.
        copies: where the new parameters are written too, in another dtype; None for nowhere.
        lr: a number or a scalar tensor.
        betas, weight_decay: as in :class:`hrm_kernels.optim.AdamATan2`.
        capturable: whether a CUDA graph may hold the step.
        tables: a dictionary that the caller keeps from step to step: device memory that a CUDA graph reads again.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    steps: Sequence[Tensor]
    copies: Sequence[Tensor] | None
    lr: float | Tensor
    betas: tuple[float, float]
    weight_decay: float
    capturable: bool
    tables: dict[Any, Any]

    def written(self) -> list[Tensor]:
        """All tensors that the step changes, except the counts."""
        return [*self.params, *self.exp_avgs, *self.exp_avg_sqs, *(self.copies or ())]

    def is_contiguous(self) -> bool:
        """Whether all of them are contiguous, as kernels need."""
        return all(tensor.is_contiguous() for tensor in self.written())

    def of(self, indices: Sequence[int]) -> "Step":
        """The same step of some of the parameters."""

        def some(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [tensors[index] for index in indices]

        copies = None if self.copies is None else some(self.copies)
        return self._replace(
            params=some(self.params),
            grads=some(self.grads),
            exp_avgs=some(self.exp_avgs),
            exp_avg_sqs=some(self.exp_avg_sqs),
            steps=some(self.steps),
            copies=copies,
        )

    def count_writes(self) -> None:
        """Raise the versions of the written tensors, as PyTorch's own operations do.

        A later backward through the old values is then an error, not a wrong gradient.
        """
        torch.autograd.graph.increment_version(self.written())

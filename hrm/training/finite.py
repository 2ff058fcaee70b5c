"""Finding the first step with a number that is not finite, without waiting for the device in each step."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hrm.training.distributed import World

_NEVER = 2**31 - 1


class FiniteCheck:
    """Notes on the device the first step with a loss, gradient or weight that is not finite.

    Args:
        device: where the run computes.
        step: the step the run starts after.

    Attributes:
        step: int32 scalar on the device, the current step.
    """

    def __init__(self, device: torch.device, step: int):
        self.step = torch.tensor(step, dtype=torch.int32, device=device)
        self._first_bad = torch.tensor(_NEVER, dtype=torch.int32, device=device)

    def note_scalars(self, scalars: Iterable[Tensor]) -> None:
        """Note the current step unless all ``scalars`` are finite."""
        self._note_unless(torch.stack([scalar.float() for scalar in scalars]).isfinite().all())

    def note_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Note the current step unless all elements of ``tensors`` are finite."""
        self._note_unless(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())

    def _note_unless(self, good: Tensor) -> None:
        self._first_bad.copy_(torch.where(good, self._first_bad, torch.minimum(self._first_bad, self.step)))

    def first_bad_step(self, world: World) -> int | None:
        """The first step that any process noted. Waits for the device; every process calls this."""
        step = int(world.min_(self._first_bad.clone()).item())
        return None if step == _NEVER else step

"""The metrics of training, summed on the device from one row of the log to the next."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from hrm.training.checkpoint import Checkpoint
from hrm.training.distributed import World

_PER_ROW = ("loss", "lm_loss", "q_halt_loss", "q_continue_loss")
_PER_FINISHED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
_SUMS = (*_PER_ROW, *_PER_FINISHED, "count")
_EARLY_STOP_ROWS = 10


class LogSums:
    """Sums over the steps since the last row of the log.

    Args:
        device: where the run computes.

    Attributes:
        values: ``[len(_SUMS)]`` float64 on the device, over the rows of this process.
        last_row_step: the step of the last row of the log; the sums start after it.
    """

    def __init__(self, device: torch.device):
        self.values = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self.last_row_step = 0
        self._recent: deque[list[float]] = deque(maxlen=_EARLY_STOP_ROWS)  # [finished, exact] of the last rows

    def add(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Add a step: its loss, and the metrics of :func:`hrm.losses.act_loss`."""
        zero, named = loss.new_zeros(()), metrics | {"loss": loss}
        self.values += torch.stack([named.get(name, zero).double() for name in _SUMS])

    def take_row(self, step: int, global_batch_size: int, world: World) -> dict[str, float | int | None]:
        """The means up to ``step``, over all processes; the sums start over. Every process calls this.

        Losses are means over all rows; the others over the rows that finished, and None if none did.
        """
        sums = dict(zip(_SUMS, world.sum_(self.values).tolist(), strict=True))
        rows, finished = (step - self.last_row_step) * global_batch_size, sums["count"]
        self._recent.append([finished, sums["exact_accuracy"]])
        self.values.zero_()
        self.last_row_step = step
        return {
            **{name: sums[name] / rows for name in _PER_ROW},
            **{name: sums[name] / finished if finished else None for name in _PER_FINISHED},
            "finished": int(finished),
        }

    def has_reached(self, exact_accuracy: float | None) -> bool:
        """Whether the last ten rows of the log together have this exact accuracy; never for None."""
        if exact_accuracy is None or len(self._recent) < _EARLY_STOP_ROWS:
            return False
        finished, exact = (sum(column) for column in zip(*self._recent, strict=True))
        return finished > 0 and exact >= exact_accuracy * finished

    @property
    def state(self) -> dict[str, Any]:
        """The JSON values that a checkpoint keeps beside the sums of each process."""
        return {"summed_from": self.last_row_step, "recent": list(self._recent)}

    def load(self, saved: Checkpoint, world: World) -> None:
        """Continue the row that ``saved`` stopped in."""
        sums = saved.tensors("log")["sums"].view(-1, len(_SUMS))  # a row for each process of that time
        if len(sums) == world.size:
            self.values.copy_(sums[world.rank])
        elif world.is_main:
            self.values.copy_(sums.sum(0))
        self.last_row_step = saved.state["summed_from"]
        self._recent.extend(saved.state["recent"])

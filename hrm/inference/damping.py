"""Damping that rises where a trajectory oscillates, for each row by itself."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hrm.errors import InputError

if TYPE_CHECKING:  # the command line imports this module for its help, which must not wait for NumPy
    import numpy as np

LEAST = 1e-3
"""The least weight of a segment, where the published code gives up."""


@dataclass(frozen=True)
class AdaptiveDamping:
    """How far a segment moves the states: ``start + weight * (end - start)``, with a weight for each row.

    A weight starts at 1. It is multiplied by ``decay`` after each ``patience`` segments in a row whose residual (of the
    whole way, before the weight) is not below the lowest one of the trajectory so far. Fixed points do not move.

    Attributes:
        decay: above 0, below 1; published: 0.99 in evaluation, 0.9 in training.
        patience: 1 or more; published: 5.

    Raises:
        InputError: a value is invalid.

    Source: FPRM (arXiv 2606.18206), whose segment is one update, and whose residual is the largest relative change of
    a position in the maximum norm. There, the weight stays where the residual is below the threshold of halting.
    """

    decay: float = 0.9
    patience: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise InputError(f"the decay of the damping is {self.decay!r}, expected a number between 0 and 1")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise InputError(f"the patience of the damping is {self.patience!r}, expected an integer, 1 or more")

    @classmethod
    def of(cls, damping: "str | AdaptiveDamping | None") -> "AdaptiveDamping | None":
        """``damping`` itself, or that of ``"DECAY"`` or ``"DECAY:PATIENCE"``, such as ``"0.9:5"``.

        Raises:
            InputError: it is something else.
        """
        if damping is None or isinstance(damping, AdaptiveDamping):
            return damping
        decay, colon, patience = str(damping).partition(":")
        try:
            return cls(float(decay), int(patience)) if colon else cls(float(decay))
        except ValueError:
            raise InputError(
                f"damping is {damping!r}, expected DECAY or DECAY:PATIENCE, such as 0.9:5, or None"
            ) from None


class RowWeights:
    """The weights of the rows of a batch, and what they depend on.

    Args:
        settings: how they fall.
        values: ``[slots]`` float32, written in place.
    """

    def __init__(self, settings: AdaptiveDamping, values: "np.ndarray") -> None:
        self._settings, self._values = settings, values
        self._lowest = [math.inf] * len(values)
        self._patience = [settings.patience] * len(values)
        values[:] = 1

    def restart(self, row: int) -> None:
        """A new trajectory takes the row."""
        self._lowest[row], self._patience[row], self._values[row] = math.inf, self._settings.patience, 1

    def update(self, row: int, residual: float) -> None:
        """A segment has ended with this residual."""
        if residual < self._lowest[row]:
            self._lowest[row], self._patience[row] = residual, self._settings.patience
            return
        self._patience[row] -= 1
        if self._patience[row] == 0:
            self._patience[row] = self._settings.patience
            self._values[row] = max(LEAST, self._values[row] * self._settings.decay)

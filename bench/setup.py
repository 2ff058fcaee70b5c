"""What a run of the suites measures, from the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.turns import rounds_for


@dataclass(frozen=True)
class Setup:
    """
    Attributes:
        device: "cpu" or "cuda".
        dtype: of inputs and models.
        full: all sizes and candidates, and more turns.
        models: folders of trained models for ``bench_solve``.
        seconds: how long the turns of one workload last; None for the default.
    """

    device: str
    dtype: torch.dtype
    full: bool
    models: tuple[Path, ...] = ()
    seconds: float | None = None

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def rounds(self) -> Callable[[float], int]:
        seconds, least, most = (10, 9, 101) if self.full else (1.5, 5, 51)
        return rounds_for(self.seconds or seconds, least, most)

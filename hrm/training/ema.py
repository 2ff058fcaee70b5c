"""Exponential moving average of a model's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Averages the parameters of ``model``: ``average += (1 - rate) * (parameter - average)`` after each step.

    Buffers such as the puzzle embedding are not averaged: a step changes only a few of a million rows, and averaging
    all of them would cost more than the step.

    Attributes:
        averages: the averaged tensors by parameter name, in the parameters' dtype.
    """

    def __init__(self, model: nn.Module, rate: float):
        self.rate = rate
        self._parameters = dict(model.named_parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the averages."""
        torch._foreach_lerp_(list(self.averages.values()), list(self._parameters.values()), 1.0 - self.rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the averages within this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # In place, because the optimiser, compiled code and CUDA graphs hold the parameters' memory.
        for name, parameter in self._parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)

"""Exponential moving average of a model's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Averages the parameters of ``model``: ``average += (1 - rate) * (parameter - average)`` after each step.

    Buffers, the puzzle embedding's rows among them, are not averaged: only a few rows change in a step, and averaging
    a million of them each time would cost more than the step.

    Attributes:
        averages: the averaged tensors by parameter name, of the parameters' dtype.
    """

    def __init__(self, model: nn.Module, rate: float):
        self.rate = rate
        self._parameters = dict(model.named_parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        torch._foreach_lerp_(list(self.averages.values()), list(self._parameters.values()), 1.0 - self.rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model computes with the averages; afterwards with its own parameters again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # In place, so that whoever holds the parameters (optimiser, compiled code, a CUDA graph) sees the averages.
        for name, parameter in self._parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)

"""A step that is repeated, of training or of thought, as one CUDA graph."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from hrm.errors import InputError
from hrm_kernels.graphs import launch_by_launch

WARM_UP = 3  # steps that libraries and allocations need to settle in


class Capture(Protocol):
    """How a step becomes a graph: :class:`CudaCapture`; tests have another."""

    def run(self, function: Callable[[], None]) -> None:
        """``function()``, before a capture."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does the function's work again, each time it is called; capturing itself does none."""


class CudaCapture:
    """Captures on a stream of its own, on which the steps before the capture run too.

    Backward runs on the stream that forward ran on, and accumulates a parameter's gradient on the stream that first
    asked for it: with one stream for all nothing in a capture waits for work outside.

    Args:
        device: where.
        off: what a user sets to do without, for the error where a step cannot be captured.
    """

    def __init__(self, device: torch.device, off: str):
        self._stream, self._off = torch.cuda.Stream(device), off

    def run(self, function: Callable[[], None]) -> None:
        """``function()``, between what the current stream has done and what it does next."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), launch_by_launch():
            function()
        current.wait_stream(self._stream)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: another thread's allocation does not end the capture
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            raise InputError(
                f"the step cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); "
                f"run it launch by launch with {self._off}"
            ) from error
        return graph.replay


class StepGraph:
    """Calls ``step(inputs)`` through a graph that is captured once the step has run a few times.

    The step must do all its work on the device, keep what it changes at the same addresses, and depend on nothing of
    the host's but ``inputs``: they are copied into memory of the graph's own. Inputs of another shape or dtype begin
    anew.

    Args:
        step: one step.
        capture: how.
        device: where the step computes.
    """

    def __init__(self, step: Callable[[dict[str, Tensor]], None], capture: Capture, device: torch.device):
        self._step, self._capture, self._device = step, capture, device
        self._inputs: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._warm = 0

    def forget(self) -> None:
        """Capture anew, for a step that from now on does other work."""
        self._replay, self._warm = None, 0

    def __call__(self, inputs: Mapping[str, Tensor]) -> bool:
        """One step on ``inputs``, which may lie in pinned memory of the host. Returns whether it was a replay."""
        if _layout(inputs) != _layout(self._inputs):
            self._inputs = {name: torch.empty_like(given, device=self._device) for name, given in inputs.items()}
            self.forget()
        for name, given in inputs.items():
            self._inputs[name].copy_(given, non_blocking=True)
        if self._warm < WARM_UP:
            self._warm += 1
            self._capture.run(lambda: self._step(self._inputs))
            return False
        if self._replay is None:
            self._replay = self._capture(lambda: self._step(self._inputs))
        self._replay()
        return True


def _layout(inputs: Mapping[str, Tensor]) -> dict[str, object]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in inputs.items()}

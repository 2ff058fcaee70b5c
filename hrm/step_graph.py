"""A step that runs many times, in training or inference, as one CUDA graph."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from hrm.errors import InputError
from hrm_kernels.capture_streams import NoStreamLeft, OwnStream
from hrm_kernels.graphs import launch_by_launch

WARM_UP = 3  # steps before the capture: libraries initialise and allocations settle


class Capture(Protocol):
    """How a step becomes a graph: :class:`CudaCapture`, or a recorder in tests."""

    def run(self, function: Callable[[], None]) -> None:
        """Call ``function``, before a capture."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture ``function`` without running it; each call of the result does its work again."""


class CudaCapture:
    """Captures on a separate stream, on which the steps before the capture run too.

    Backward runs on the stream of forward, and accumulates the gradient of a parameter on the stream that first used
    it. With one stream for everything, nothing in a capture waits for work outside of it.

    Args:
        device: where the step computes.
        off: the setting that disables graphs, for the error if a step cannot be captured.

    Raises:
        InputError: too many graphs live already.
    """

    def __init__(self, device: torch.device, off: str):
        try:
            self._own = OwnStream(device)
        except NoStreamLeft as error:
            raise InputError(f"the step cannot be captured as a CUDA graph: {error}") from error
        self._stream, self._off = self._own.stream, off

    def run(self, function: Callable[[], None]) -> None:
        """Call ``function``, ordered after the earlier and before the later work of the current stream."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), launch_by_launch():
            function()
        current.wait_stream(self._stream)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: an allocation in another thread does not break the capture
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            raise InputError(
                f"the step cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); "
                f"run it launch by launch with {self._off}"
            ) from error
        return partial(self._own.replay, graph)


class StepGraph:
    """Calls ``step(inputs)``, after a few calls as replays of a graph.

    The step must do all its work on the device, keep what it changes at the same addresses, and depend on the host only
    by ``inputs``, which are copied into the graph's memory. Inputs of another shape or dtype start over.

    Args:
        step: one step.
        capture: captures the step.
        device: where the step computes.
    """

    def __init__(self, step: Callable[[dict[str, Tensor]], None], capture: Capture, device: torch.device):
        self._step, self._capture, self._device = step, capture, device
        self._inputs: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._warm = 0

    def forget(self) -> None:
        """Warm up and capture again, because the step does other work from now on."""
        self._replay, self._warm = None, 0

    def __call__(self, inputs: Mapping[str, Tensor]) -> bool:
        """Run one step on ``inputs``, which may be in pinned host memory. Returns whether it was a replay."""
        if _layout(inputs) != _layout(self._inputs):
            self._inputs = {name: torch.empty_like(tensor, device=self._device) for name, tensor in inputs.items()}
            self.forget()
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor, non_blocking=True)
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

"""Functions of tensors as CUDA graphs: one launch for all their kernels, captured once and replayed.

What a graph reads and writes it finds by address. Inputs are therefore copied into memory of the graph's own, and what
comes out is copied from there, so that a caller owns what it gets; weights are read where they lie.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensors]], tuple[Replay, Tensors]]
"""Takes a function without arguments; returns what runs its work again, and the tensors where the results then are."""

ENABLED = os.environ.get("HRM_KERNELS_GRAPHS") != "0"
"""``HRM_KERNELS_GRAPHS=0`` in the environment runs everything launch by launch: to save memory, or to find a fault."""

KEPT = 4  # graphs; each holds the memory of its function's intermediate results
SEEN = 64  # calls remembered that have come once


def cuda_capture(function: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
    """Capture ``function`` on the current device, after a run on a side stream in which libraries set themselves up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread's allocation (pinning a batch, say) does not end the capture
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs


@contextmanager
def launch_by_launch() -> Iterator[None]:
    """No graphs in here, for whoever warms up for a capture of its own, around all of it."""
    global ENABLED
    before, ENABLED = ENABLED, False
    try:
        yield
    finally:
        ENABLED = before


def capturable(tensor: torch.Tensor) -> bool:
    """Whether work on ``tensor`` can be captured now: on an NVIDIA or AMD GPU, eagerly, and in no other capture."""
    return (
        ENABLED
        and tensor.is_cuda
        and not torch.compiler.is_compiling()
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and not torch.cuda.is_current_stream_capturing()
    )


@dataclass
class _Captured:
    replay: Replay
    inputs: Tensors
    outputs: Tensors


class Graphs:
    """Calls a function through graphs, one for each combination of shapes, dtypes, device, stream and addresses.

    A combination's first call is direct, its second captures: a call that never comes again (weights made anew for it,
    say) captures nothing. Moved weights are another combination. Of the graphs the ``kept`` last used stay.

    Args:
        capture: :func:`cuda_capture`; tests have another.
        kept: graphs at most.
    """

    def __init__(self, capture: Capture = cuda_capture, kept: int = KEPT):
        self._capture, self._kept = capture, kept
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = threading.Lock()  # a graph's inputs, replay and outputs belong together

    def __call__(
        self, function: Function, inputs: Sequence[torch.Tensor], fixed: Sequence[torch.Tensor], options: Hashable
    ) -> Tensors:
        """``function(*inputs)``.

        Args:
            function: launches the same work for the same key, and waits for nothing.
            inputs: all on one device; copied in.
            fixed: what the function reads beside them; by address.
            options: whatever else decides what the function does.
        """
        key = (options, _stream(inputs[0]), tuple(map(_layout, inputs)), tuple(map(_place, fixed)))
        with self._lock:
            captured = self._graphs.get(key)
            if captured is None:
                if key not in self._seen:
                    self._seen[key] = None
                    if len(self._seen) > SEEN:
                        self._seen.popitem(last=False)
                    return function(*inputs)
                captured = self._begin(function, inputs, key)
            self._graphs.move_to_end(key)
            with _plain(inputs[0]):
                for own, given in zip(captured.inputs, inputs, strict=True):
                    own.copy_(given)
                captured.replay()
                return tuple(output.clone() for output in captured.outputs)

    def _begin(self, function: Function, inputs: Sequence[torch.Tensor], key: Hashable) -> _Captured:
        while len(self._graphs) >= self._kept:  # before the new one asks for memory
            self._graphs.popitem(last=False)
        with _plain(inputs[0]):
            own = tuple(torch.empty_like(given).copy_(given) for given in inputs)
            replay, outputs = self._capture(lambda: function(*own))
        captured = self._graphs[key] = _Captured(replay, own, outputs)
        del self._seen[key]
        return captured


@contextmanager
def _plain(tensor: torch.Tensor) -> Iterator[None]:
    """On the tensor's device, without gradients, not in inference mode, whose tensors later calls could not fill."""
    with torch.cuda.device_of(tensor), torch.inference_mode(False), torch.no_grad():
        yield


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _layout(tensor: torch.Tensor) -> Hashable:
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _place(tensor: torch.Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

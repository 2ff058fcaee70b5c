"""Functions of tensors as CUDA graphs: all kernels in one launch, captured once and replayed.

A graph reads and writes fixed addresses. Inputs are therefore copied into the graph's memory, and results are copied
out of it, so that the caller owns them. Weights are read in place.
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
"""Takes a function without arguments; returns a function that replays its work, and the tensors of the results."""

ENABLED = os.environ.get("HRM_KERNELS_GRAPHS") != "0"
"""``HRM_KERNELS_GRAPHS=0`` in the environment disables graphs, to save memory or to find an error."""

KEPT = 4  # graphs; each holds the memory of the intermediate results
SEEN = 64  # combinations remembered that were called once


def cuda_capture(function: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
    """Capture ``function`` on the current device, after a warm-up on a side stream that initialises libraries."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: an allocation by another thread (such as pinning a batch) does not end the capture
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs


@contextmanager
def launch_by_launch() -> Iterator[None]:
    """Disable graphs while an outer capture warms up."""
    global ENABLED
    before, ENABLED = ENABLED, False
    try:
        yield
    finally:
        ENABLED = before


def capturable(tensor: torch.Tensor) -> bool:
    """Whether work on ``tensor`` can be captured now: on a GPU, in eager mode, outside other captures."""
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

    The first call of a combination runs directly, the second one captures. So a call that is never repeated (because
    its weights are new, for example) captures nothing. Moved weights are a new combination. The ``kept`` graphs that
    were used last stay.

    Args:
        capture: :func:`cuda_capture`; tests pass another one.
        kept: the largest number of graphs.
    """

    def __init__(self, capture: Capture = cuda_capture, kept: int = KEPT):
        self._capture, self._kept = capture, kept
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = threading.Lock()  # copying inputs, replaying and copying outputs is one step

    def __call__(
        self, function: Function, inputs: Sequence[torch.Tensor], fixed: Sequence[torch.Tensor], options: Hashable
    ) -> Tensors:
        """``function(*inputs)``.

        Args:
            function: launches the same work for the same key, and does not synchronise.
            inputs: tensors on one device; they are copied into the graph's memory.
            fixed: other tensors that the function reads, in place.
            options: everything else that the work depends on.
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
                captured = self._capture_new(function, inputs, key)
            self._graphs.move_to_end(key)
            with _plain(inputs[0]):
                for static, value in zip(captured.inputs, inputs, strict=True):
                    static.copy_(value)
                captured.replay()
                return tuple(output.clone() for output in captured.outputs)

    def _capture_new(self, function: Function, inputs: Sequence[torch.Tensor], key: Hashable) -> _Captured:
        while len(self._graphs) >= self._kept:  # first, to free memory for the new graph
            self._graphs.popitem(last=False)
        with _plain(inputs[0]):
            static = tuple(torch.empty_like(value).copy_(value) for value in inputs)
            replay, outputs = self._capture(lambda: function(*static))
        captured = self._graphs[key] = _Captured(replay, static, outputs)
        del self._seen[key]
        return captured


@contextmanager
def _plain(tensor: torch.Tensor) -> Iterator[None]:
    """On the tensor's device, without gradients, and outside inference mode: later calls write to the tensors."""
    with torch.cuda.device_of(tensor), torch.inference_mode(False), torch.no_grad():
        yield


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _layout(tensor: torch.Tensor) -> Hashable:
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _place(tensor: torch.Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

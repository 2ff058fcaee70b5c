"""Functions of tensors as CUDA graphs: all kernels in one launch, captured once and replayed.

A graph reads and writes fixed addresses. Inputs are therefore copied into the graph's memory, and results are copied
out of it, so that the caller owns them. Weights are read in place.
"""

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from hrm_kernels.capture_streams import NoStreamLeft, OwnStream

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensors]], tuple[Replay, Tensors]]
"""Takes a function without arguments; returns a function that replays its work, and the tensors of the results.

It raises :class:`hrm_kernels.capture_streams.NoStreamLeft` where too many graphs live already.
"""

ENABLED = os.environ.get("HRM_KERNELS_GRAPHS") != "0"
"""``HRM_KERNELS_GRAPHS=0`` in the environment disables graphs, to save memory or to find an error."""

KEPT = 4  # graphs; each holds the memory of the intermediate results
SEEN = 64  # combinations remembered that were called once
WORTH = 10  # replays that repay a capture, which runs the function twice and instantiates a graph; not measured yet
WASTED = 4  # graphs of a call that were replaced before, after which the call is captured no more


def cuda_capture(function: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
    """Capture ``function`` on the current device, after a warm-up on the same stream that initialises libraries."""
    own = OwnStream(torch.device("cuda"))
    own.stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(own.stream):
        function()
    torch.cuda.current_stream().wait_stream(own.stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: an allocation by another thread (such as pinning a batch) does not end the capture
    with torch.cuda.graph(graph, stream=own.stream, capture_error_mode="thread_local"):
        outputs = function()
    return partial(own.replay, graph), outputs


_lock = threading.Lock()
_warm_ups = 0  # that run now, in all threads: the backward of one runs in threads of autograd


@contextmanager
def launch_by_launch() -> Iterator[None]:
    """Disable graphs while an outer capture warms up: in all threads, and until the last of several warm-ups ends."""
    global _warm_ups
    with _lock:
        _warm_ups += 1
    try:
        yield
    finally:
        with _lock:
            _warm_ups -= 1


def capturable(tensor: torch.Tensor) -> bool:
    """Whether work on ``tensor`` can be captured now: on a GPU, in eager mode, outside other captures."""
    return (
        not torch.compiler.is_compiling()  # first: what follows would be guarded
        and ENABLED
        and not _warm_ups
        and tensor.is_cuda
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and not torch.cuda.is_current_stream_capturing()
    )


@dataclass
class _Captured:
    replay: Replay
    inputs: Tensors
    outputs: Tensors
    replays: int = 0


@dataclass(frozen=True)
class _Key:
    """What a graph depends on: ``call``, the same wherever the weights are, and ``places``, their addresses."""

    call: Hashable
    places: Hashable


class Graphs:
    """Calls a function through graphs, one for each combination of shapes, dtypes, device, stream and addresses.

    The first call of a combination runs directly, the second one captures. So a call that is never repeated (because
    its weights are new, for example) captures nothing. Moved weights are a new combination. The ``kept`` graphs that
    were used last stay. A call that loses graph after graph before they were replayed often is captured no more, with
    one warning: capturing would take longer than it saves. The graphs that it still has are replayed.

    Args:
        capture: :func:`cuda_capture`; tests pass another one.
        kept: the largest number of graphs.
    """

    def __init__(self, capture: Capture = cuda_capture, kept: int = KEPT):
        self._capture, self._kept = capture, kept
        self._graphs: OrderedDict[_Key, _Captured] = OrderedDict()
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        self._wasted: OrderedDict[Hashable, int] = OrderedDict()  # graphs replaced before they were worth it, by call
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
        key = _Key((options, _stream(inputs[0]), tuple(map(_layout, inputs))), tuple(map(_place, fixed)))
        with self._lock:
            captured = self._graphs.get(key) or self._capture_repeated(function, inputs, key)
            if captured is None:
                return function(*inputs)
            self._graphs.move_to_end(key)
            captured.replays += 1
            with _plain(inputs[0]):
                for static, value in zip(captured.inputs, inputs, strict=True):
                    static.copy_(value)
                captured.replay()
                return tuple(output.clone() for output in captured.outputs)

    def _capture_repeated(self, function: Function, inputs: Sequence[torch.Tensor], key: _Key) -> _Captured | None:
        """Capture a call that was seen before; None for one that runs directly."""
        if self._wasted.get(key.call, 0) >= WASTED:
            return None
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            return None
        while len(self._graphs) >= self._kept:  # first, to free memory for the new graph
            self._drop_oldest()
        if self._wasted.get(key.call, 0) >= WASTED:  # the call has just lost one more
            return None
        with _plain(inputs[0]):
            static = tuple(torch.empty_like(value).copy_(value) for value in inputs)
            try:
                replay, outputs = self._capture(lambda: function(*static))
            except NoStreamLeft as reason:
                self._give_up(key.call, str(reason))
                return None
        captured = self._graphs[key] = _Captured(replay, static, outputs)
        del self._seen[key]
        return captured

    def _drop_oldest(self) -> None:
        key, captured = self._graphs.popitem(last=False)
        if captured.replays >= WORTH:
            return
        wasted = self._wasted[key.call] = self._wasted.pop(key.call, 0) + 1
        if len(self._wasted) > SEEN:
            self._wasted.popitem(last=False)
        if wasted == WASTED:
            self._give_up(
                key.call,
                f"{WASTED} graphs of it were replaced after fewer than {WORTH} replays each, because its weights move "
                f"or its shapes change all the time; keep weights at their addresses, and batches to at most "
                f"{self._kept} shapes",
            )

    def _give_up(self, call: Hashable, reason: str) -> None:
        self._wasted[call] = WASTED
        warnings.warn(f"hrm_kernels: a call runs launch by launch from now on: {reason}", stacklevel=2)


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

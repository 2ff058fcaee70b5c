"""Streams on which CUDA graphs are captured, each for one graph at a time.

``torch.cuda.Stream()`` returns the streams of a pool in turn, so it may return one twice. PyTorch keeps one cuBLAS
workspace for each handle and stream, and a captured product writes to the workspace of the stream of its capture,
wherever it is replayed. Two graphs that were captured on one stream would therefore share a workspace, and replaying
them at the same time would mix their results.

Work of your own that is not captured can still be on the same stream of the pool. It has the same handle only in the
thread that captured the graph, so do not multiply on a stream of the pool there while a replay runs on another stream.

Source: PyTorch, aten/src/ATen/cuda/CUDABlas.cpp and CublasHandlePool.cpp, c10/cuda/CUDAStream.cpp.
"""

import threading
import weakref

import torch

POOL = 32
"""Streams of normal priority in PyTorch's pool of a device (kStreamsPerPool)."""

_taken: set[tuple[torch.device, int]] = set()  # device and handle of the streams of living graphs
_lock = threading.Lock()


class NoStreamLeft(RuntimeError):
    """Every stream of PyTorch's pool belongs to a living graph."""


class OwnStream:
    """A stream that no other living :class:`OwnStream` has.

    Whoever captures a graph on it keeps the object as long as the graph can be replayed: ``partial(own.replay, graph)``
    keeps both.

    Args:
        device: of the stream.

    Attributes:
        stream: the ``torch.cuda.Stream``.

    Raises:
        NoStreamLeft: all are taken.
    """

    def __init__(self, device: torch.device) -> None:
        with _lock:
            self.stream = _free_stream(device)
            key = _key(self.stream)
            _taken.add(key)
        # without the lock, which this thread may hold when the garbage collector runs; to discard is one step
        weakref.finalize(self, _taken.discard, key).atexit = False
        _wait_for(device)  # the last replay of a graph that had this stream may still run

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        """Replay a graph that was captured on this stream."""
        graph.replay()


def _key(stream: torch.cuda.Stream) -> tuple[torch.device, int]:
    return stream.device, stream.cuda_stream


def _free_stream(device: torch.device) -> torch.cuda.Stream:
    for _ in range(2 * POOL):  # twice, because other threads also take streams in turn
        stream = _next_of_pool(device)
        if _key(stream) not in _taken:
            return stream
    raise NoStreamLeft(
        f"every stream of {device} belongs to one of {len(_taken)} CUDA graphs; free engines that are not needed any "
        "more, or disable graphs with HRM_KERNELS_GRAPHS=0 in the environment"
    )


def _next_of_pool(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _wait_for(device: torch.device) -> None:
    torch.cuda.synchronize(device)

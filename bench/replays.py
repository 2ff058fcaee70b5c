"""Prepare a workload for timing: inputs, number of calls, CUDA graphs, launches."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.turns import Replay, seconds_of, synchronize
from bench.workload import Workload, tensors

REPLAY_SECONDS = 2e-3
"""Seconds of one replay: CUDA events resolve half a microsecond."""

Call = Callable[[tuple[Any, ...]], Any]


def input_sets(workload: Workload, device: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Arguments to rotate through: one set on a CPU; on a GPU enough to exceed three L2 caches."""
    first = workload.make(device, dtype, 0)
    size = sum(t.nbytes for t in tensors(first))
    if device != "cuda" or size == 0:  # no tensors but a model and its state: larger than any cache
        return [first]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(2, min(40, math.ceil(3 * cache / size)))
    return [first, *(workload.make(device, dtype, seed) for seed in range(1, count))]


def prepare(workload: Workload, call: Call, sets: Sequence[tuple[Any, ...]], device: str) -> Replay:
    """Warm up, and choose how many calls one replay makes."""
    for arguments in sets[:2] if device == "cuda" else ():
        call(arguments)
    synchronize(device)
    estimate = seconds_of(lambda: call(sets[0]), device, busy=False)
    if estimate < 0.5:  # the first call of all may compile or pack; a longer one leaves no time for more
        estimate = min(estimate, *(seconds_of(lambda: call(sets[0]), device, busy=False) for _ in range(2)))
    turns = math.ceil(REPLAY_SECONDS / max(estimate, 1e-6) / len(sets))
    calls = len(sets) * max(1, min(turns, math.ceil(200 / len(sets))))
    if device == "cuda" and workload.is_capturable:
        return capture(call, sets, calls)
    calls = min(calls, 10) if device == "cuda" else calls
    return Replay(
        lambda: [call(sets[index % len(sets)]) for index in range(calls)][-1:], calls, "calls", estimate * calls
    )


def capture(call: Call, sets: Sequence[tuple[Any, ...]], calls: int) -> Replay:
    """Capture ``calls`` calls as one CUDA graph.

    It keeps the results of the last ``len(sets)`` calls, so that they are written to memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for arguments in sets[:2]:
            call(arguments)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    results: deque[Any] = deque(maxlen=len(sets))
    with torch.cuda.graph(graph):
        for index in range(calls):
            results.append(call(sets[index % len(sets)]))

    def replay() -> deque[Any]:
        graph.replay()
        return results

    return Replay(replay, calls, "graph")


def launches(call: Callable[[], Any]) -> int | None:
    """Number of kernels, copies and fills that a call launches on the GPU; None if the profiler sees none."""
    from torch.autograd import DeviceType

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profile.events()) or None

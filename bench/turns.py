"""Time candidates in turns: what slows the machine for a while then slows all of them."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

CALM = 0.05
"""The share of a turn that threads may wait for a core."""

LEAST = 3
"""The fewest turns, however long one is."""

BUSY_CYCLES = 1_000_000
"""Half a millisecond of waiting on the GPU, while the host enqueues the replay."""


class Replay(NamedTuple):
    """What to time: it makes ``calls`` calls, as one "graph" or as separate "calls".

    ``seconds`` is what it may take, if that is known.
    """

    run: Callable[[], Any]
    calls: int
    mode: str
    seconds: float = 0.0


@dataclass
class Turns:
    """Times of candidates that took turns.

    Attributes:
        times: by candidate, seconds per call of every turn that counts, in order.
        waits: by candidate, the share of each turn that its threads waited for a core; 0 on a GPU.
        disturbed: number of turns that do not count.
    """

    times: dict[str, list[float]]
    waits: dict[str, list[float]]
    disturbed: int = 0


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], device: str, busy: bool = True) -> float:
    """Seconds of one run; with ``busy``, a GPU is kept busy while the host enqueues the work."""
    if device != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if busy:
        torch.cuda._sleep(BUSY_CYCLES)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def seconds_waited() -> float:
    """Seconds that threads of this process have waited for a core; only differences have a meaning.

    Linux counts them. Elsewhere it is the wall time minus this thread's CPU time.
    """
    total, is_counted = 0, False
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(file.read_text().split()[1])
            is_counted = True
        except (OSError, LookupError, ValueError):  # the thread has ended, or this kernel does not count
            continue
    return total / 1e9 if is_counted else time.perf_counter() - time.thread_time()


def take_turns(
    replays: Mapping[str, Replay], device: str, rounds: int, patience: int = 1, until: float = math.inf
) -> Turns:
    """Time ``rounds`` turns of every candidate.

    Args:
        patience: above 1, a turn in which a candidate waited for a core longer than :data:`CALM` is repeated, up to
            ``patience * rounds`` turns in all; if the first ``rounds`` turns are all disturbed, no more are taken. Load
            slows candidates by different factors, most those whose threads wait for each other at every step.
        until: after this time of ``time.perf_counter`` no turn starts, except that the first :data:`LEAST` do as long
            as none was disturbed.
    """
    turns = Turns({name: [] for name in replays}, {name: [] for name in replays})
    for count in range(rounds * patience):
        if (count >= LEAST or turns.disturbed) and time.perf_counter() > until:
            break
        turn = {name: _time(replay, device) for name, replay in replays.items()}
        if patience > 1 and max(wait for _, wait in turn.values()) > CALM:
            turns.disturbed += 1
            if turns.disturbed >= rounds and not any(turns.times.values()):
                break
            continue
        for name, (seconds, wait) in turn.items():
            turns.times[name].append(seconds)
            turns.waits[name].append(wait)
        if all(len(times) == rounds for times in turns.times.values()):
            break
    return turns


def _time(replay: Replay, device: str) -> tuple[float, float]:
    """Seconds per call, and the share of the time that threads waited for a core."""
    if device != "cpu":
        return seconds_of(replay.run, device, replay.mode == "graph") / replay.calls, 0.0
    before = seconds_waited()
    seconds = seconds_of(replay.run, device)
    return seconds / replay.calls, (seconds_waited() - before) / seconds


def warm_up(replays: Mapping[str, Replay], device: str) -> float:
    """Run two turns, or one if it is long, or none if it is known to be; return the seconds of one."""
    turn = sum(replay.seconds for replay in replays.values())
    if turn > 2:
        return turn
    turn = 0.0
    for _ in range(2):
        if turn < 0.5:
            start = time.perf_counter()
            take_turns(replays, device, 1)
            turn = time.perf_counter() - start
    return turn


def rounds_for(seconds: float, least: int, most: int) -> Callable[[float], int]:
    """Map the seconds of one turn to the number of turns that fit into ``seconds``; long turns need only 3."""
    return lambda turn: max(least if turn < 2 else LEAST, min(most, int(seconds / max(turn, 1e-9))))

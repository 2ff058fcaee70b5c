"""Check the candidates of a workload, then time them in turns.

On a GPU one replay is a CUDA graph of many calls over inputs that rotate (together larger than three L2 caches), timed
between two events behind a queue that is already busy: neither launches nor a warm cache are in the number. What cannot
be captured is timed with its launches; its mode is then "calls".
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import hrm_kernels
from bench.accuracy import Oracle, converted
from bench.replays import input_sets, launches, prepare
from bench.turns import Replay, take_turns, warm_up
from bench.workload import Workload

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload.

    Attributes:
        op: takes the workload's arguments.
        checked_op: computes the values that are checked, in place of ``op``.
        is_checked: its values must be right.
        absent_reason: why it cannot run here, or None.
        dtype: computes the same values in another dtype than the workload's; None is the workload's.
    """

    op: Callable[..., Any]
    checked_op: Callable[..., Any] | None = None
    is_checked: bool = True
    absent_reason: str | None = None
    dtype: torch.dtype | None = None


def measure(
    workload: Workload,
    device: str,
    dtype: torch.dtype,
    candidates: Mapping[str, Candidate],
    rounds: Callable[[float], int],
    patience: int = 1,
    until: float = math.inf,
) -> dict[str, dict[str, Any]]:
    """Check the candidates, then time those that are right in turns.

    Args:
        rounds: maps the seconds of one turn to the number of turns.
        patience, until: as in :func:`bench.turns.take_turns`.

    Returns:
        By candidate: ``status``, "ok" or why there are no numbers. If ok also ``times`` (seconds per call of every
        turn, in order), ``waited`` (the median share of a turn that threads waited for a core), ``disturbed`` (number
        of turns left out), ``calls`` and ``mode`` as in :class:`bench.turns.Replay`; on a GPU ``launches``; the values
        of the workload's ``score``. If values were compared, ``error``, the largest of each result.
    """
    rows: dict[str, dict[str, Any]] = {}
    sets = input_sets(workload, device, dtype)

    def arguments() -> tuple[Any, ...]:
        return workload.make(device, dtype, 0) if workload.is_stateful else sets[0]

    oracle = Oracle(workload, arguments, dtype) if workload.is_checked else None
    replays: dict[str, Replay] = {}
    for name, candidate in candidates.items():
        row = rows[name] = {"status": "ok"}
        if candidate.absent_reason is not None:
            row["status"] = f"absent: {candidate.absent_reason}"
            continue
        own_sets = [arguments()] if workload.is_stateful else sets
        if candidate.dtype is not None:
            own_sets = [_in_dtype(workload, candidate.dtype, device, one, dtype) for one in own_sets]
        try:
            if oracle is not None and candidate.is_checked:
                row["error"] = oracle.errors(workload.call(candidate.checked_op or candidate.op, own_sets[0]))
                if reason := oracle.wrong_reason(row["error"]):
                    row["status"] = f"wrong: {reason}"
                    continue

            def call(arguments: tuple[Any, ...], op: Callable[..., Any] = candidate.op) -> list[torch.Tensor]:
                return workload.call(op, arguments)

            replays[name] = prepare(workload, call, own_sets, device)
            if workload.score is not None:
                row |= workload.score(call(own_sets[0]))
            if device == "cuda":
                row["launches"] = launches(lambda: call(own_sets[0]))
        except Exception as error:
            row["status"] = failure_of(error)
    del oracle  # frees its memory before the timing
    if not replays:
        return rows
    seconds_of_a_turn = warm_up(replays, device)
    turns = take_turns(replays, device, rounds(seconds_of_a_turn), patience, until)
    for name, times in turns.times.items():
        rows[name] |= {"mode": replays[name].mode, "calls": replays[name].calls, "times": times}
        rows[name] |= {"waited": statistics.median(turns.waits[name] or [0.0]), "disturbed": turns.disturbed}
    return rows


def _in_dtype(
    workload: Workload, dtype: torch.dtype, device: str, arguments: tuple[Any, ...], source: torch.dtype
) -> tuple[Any, ...]:
    """Arguments with the same values, whose dtype is ``dtype`` instead of ``source``."""
    if workload.to_float64 is None:
        return converted(arguments, dtype, source)
    return workload.make(device, dtype, 0)  # a model has float32 weights, whatever it computes in


def failure_of(error: Exception) -> str:
    """The status of a candidate that raised ``error``.

    Raises:
        Exception: ``error`` itself, if it is a CUDA error: nothing else can run in this process.
    """
    if isinstance(error, hrm_kernels.BackendUnavailable):
        return f"unavailable: {error}"
    if isinstance(error, ImportError):  # the package is installed, but one of its requirements is not
        return f"absent: {error}"
    if "CUDA error" in str(error):
        raise error
    return f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"

"""Times the workloads: ``python -m bench.timing FILE`` appends one JSON line per measurement (bench.gpu reads them).

The suites (``bench_*.py``) measure by the same functions.

On a GPU: a CUDA graph of many calls over inputs that rotate (together larger than three L2 caches), replayed between
two events behind a queue that is already busy, so that neither launches nor a warm cache are in the number. What cannot
be captured is timed with its launches, which the line says ("calls"). Candidates take turns; a line has the median.
Before timing, a candidate's error against float64 must be at most twice that of plain PyTorch in the same dtype, and
:func:`slack`; of a model, whose many layers amplify rounding by chance, the largest of several :func:`draws`.
"""

import argparse
import copy
import functools
import json
import math
import operator
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hrm_kernels
from bench.workloads import Workload, converted, published, tensors

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COMPILE = "torch.compile"
ROUNDS = 20
QUICK_ROUNDS = 7
GRAPH_SECONDS = 2e-3  # of one replay: events resolve half a microsecond
CALM = 0.05  # the part of a turn that threads may wait for a core
BUSY_CYCLES = 1_000_000  # half a millisecond of waiting on the GPU, while the replay is put behind it

Replay = tuple[Callable[[], Any], int, str]
"""What to time, how many calls it makes, and how ("graph", "calls")."""


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], device: str, busy: bool = True) -> float:
    """Time of one run."""
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


def waited() -> float:
    """Seconds that threads of this process have waited for a core so far; only differences mean something.

    Linux counts them. Elsewhere it is what this thread's CPU time lacks of the time that has passed.
    """
    total, found = 0, False
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(file.read_text().split()[1])
            found = True
        except (OSError, LookupError, ValueError):  # the thread has ended, or this kernel does not count
            continue
    return total / 1e9 if found else time.perf_counter() - time.thread_time()


@dataclass
class Turns:
    """The turns that candidates took.

    Attributes:
        times: by candidate, the seconds per call of every turn that counts, in order.
        waits: by candidate, the part of each of these turns that its threads waited for a core; on a CPU.
        disturbed: turns that were left out.
    """

    times: dict[str, list[float]]
    waits: dict[str, list[float]]
    disturbed: int = 0


def take_turns(replays: dict[str, Replay], device: str, rounds: int, patience: int = 1) -> Turns:
    """``rounds`` turns of every candidate.

    Args:
        patience: above 1, turns in which a candidate waited for a core longer than :data:`CALM` allows do not count and
            are taken again, up to so many times ``rounds`` in all, but no longer where the first ``rounds`` are all
            disturbed. Load slows candidates by different factors: threads that wait for each other at every step lose
            the most.
    """
    turns = Turns({name: [] for name in replays}, {name: [] for name in replays})
    for _ in range(rounds * patience):
        turn: dict[str, tuple[float, float]] = {}
        for name, (run, calls, mode) in replays.items():
            before = waited() if device == "cpu" else 0.0
            seconds = seconds_of(run, device, mode == "graph")
            wait = (waited() - before) / seconds if device == "cpu" else 0.0
            turn[name] = seconds / calls, wait
        if patience > 1 and max(wait for _, wait in turn.values()) > CALM:
            turns.disturbed += 1
            if turns.disturbed >= rounds and not turns.times[name]:
                break
            continue
        for name, (seconds, wait) in turn.items():
            turns.times[name].append(seconds)
            turns.waits[name].append(wait)
        if len(turns.times[name]) == rounds:
            break
    return turns


def ceilings(device: str, tiny: bool) -> dict[str, float]:
    """Copy bandwidth in bytes/s (read plus written) and bfloat16 matrix product in FLOP/s, on random data."""
    rounds = 3 if tiny else 20
    source = torch.randn((1 << 20) if tiny else (1 << 29), device=device)  # 2 GB: far beyond any cache
    target = torch.empty_like(source)
    size = 512 if tiny else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    replays: dict[str, Replay] = {
        "copy": (lambda: target.copy_(source), 1, "graph"),
        "matmul": (lambda: torch.mm(a, b, out=out), 1, "graph"),
    }
    take_turns(replays, device, 3)
    times = take_turns(replays, device, rounds).times
    copy, product = (statistics.median(times[name]) for name in ("copy", "matmul"))
    return {"copy_bytes_per_s": 2 * source.nbytes / copy, "matmul_flops_per_s": 2 * size**3 / product}


def errors(got: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> list[float]:
    """The largest error of every result, over the largest exact value."""
    return [
        ((g.double() - e).abs().max() / e.abs().max().clamp(min=1e-30)).item() if e.numel() else 0.0
        for g, e in zip(got, exact, strict=True)
    ]


def capture(call: Callable[[tuple[Any, ...]], Any], sets: Sequence[tuple[Any, ...]], calls: int) -> Replay:
    """A graph of ``calls`` calls; results of one turn of the inputs stay, so that they are written to memory."""
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

    return replay, calls, "graph"


def prepare(
    workload: Workload, call: Callable[[tuple[Any, ...]], Any], sets: Sequence[tuple[Any, ...]], device: str
) -> Replay:
    for arguments in sets[:2]:
        call(arguments)
    synchronize(device)
    estimate = seconds_of(lambda: call(sets[0]), device, busy=False)
    if estimate < 0.1:
        estimate = min(estimate, *(seconds_of(lambda: call(sets[0]), device, busy=False) for _ in range(2)))
    turns = math.ceil(GRAPH_SECONDS / max(estimate, 1e-6) / len(sets))
    calls = len(sets) * max(1, min(turns, math.ceil(200 / len(sets))))
    if device == "cuda" and workload.graph:
        return capture(call, sets, calls)
    calls = min(calls, 10) if device == "cuda" else calls
    return lambda: [call(sets[index % len(sets)]) for index in range(calls)][-1:], calls, "calls"


def launches(call: Callable[[], Any]) -> int | None:
    """What a call starts on the GPU: kernels, copies, fills. None where the profiler sees none."""
    from torch.autograd import DeviceType

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profile.events()) or None


def input_sets(workload: Workload, device: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    first = workload.make(device, dtype, 0)
    if device != "cuda":
        return [first]
    size = sum(t.nbytes for t in tensors(first))
    if size == 0:  # a model with what belongs to it: larger than any cache
        return [first]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(2, min(40, math.ceil(3 * cache / size)))
    return [first, *(workload.make(device, dtype, seed) for seed in range(1, count))]


def on_backend(name: str | None, op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on a backend of ours; None leaves the choice to each call."""

    def run(*arguments: Any) -> Any:
        with hrm_kernels.use_backend(name):
            return op(*arguments)

    return run


def slack(dtype: torch.dtype) -> float:
    """What an error (see :func:`errors`) may be beyond twice that of plain PyTorch.

    One rounding of the largest value; in float32, where long sums round more often than the result is rounded, eight,
    as in tests/hrm_kernels/test_cpu.py.
    """
    return torch.finfo(dtype).eps * (8 if dtype is torch.float32 else 1)


def draws(workload: Workload, plain: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[list[torch.Tensor]]:
    """Results of plain PyTorch in float32 with a model's weights off by up to a unit in the last place.

    They say how far rounding may go: after a segment errors of single draws range over a factor of ten. None where the
    arguments hold no model.
    """
    for seed in range(4 if any(isinstance(one, torch.nn.Module) for one in arguments) else 0):
        own = copy.deepcopy(arguments)  # together: optimisers keep to the weights of their model
        weights = [w for one in own if isinstance(one, torch.nn.Module) for w in one.parameters()]
        generator = torch.Generator(weights[0].device).manual_seed(seed)
        with torch.no_grad():
            for weight in weights:
                weight.mul_(1 + (torch.rand(weight.shape, generator=generator, device=weight.device) - 0.5) * 2**-22)
        yield workload.call(plain, own)


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload.

    Attributes:
        op: takes the workload's arguments.
        proof: what its values are checked by, in the place of ``op``.
        checked: its values are to be right.
        absent: why it cannot run here; None where it can.
    """

    op: Callable[..., Any]
    proof: Callable[..., Any] | None = None
    checked: bool = True
    absent: str | None = None


def rounds_for(seconds: float, least: int, most: int) -> Callable[[float], int]:
    """How many turns fit into ``seconds``, by the seconds of one turn; at least 3 where a turn is long."""
    return lambda turn: max(least if turn < 2 else 3, min(most, int(seconds / max(turn, 1e-9))))


def measure(
    workload: Workload,
    device: str,
    dtype: torch.dtype,
    candidates: Mapping[str, Candidate],
    rounds: Callable[[float], int],
    patience: int = 1,
) -> dict[str, dict[str, Any]]:
    """Check the candidates, then time them in turns; ``patience`` is that of :func:`take_turns`.

    Returns:
        By candidate: ``status``, which is "ok" or why there are no numbers. With them ``times`` (seconds per call, one
        for each turn, in order), ``waited`` (the median part of a turn that its threads waited for a core),
        ``disturbed`` (turns left out), ``calls`` and ``mode`` as in :data:`Replay`, on GPUs ``launches``, of workloads
        that have one its ``score``'s values; and where values were compared ``error``, the largest of each result.
    """
    rows: dict[str, dict[str, Any]] = {}
    sets = input_sets(workload, device, dtype)

    def fresh() -> tuple[Any, ...]:
        return workload.make(device, dtype, 0) if workload.own else sets[0]

    if workload.checked:
        plain_op = workload.plain or on_backend("reference", workload.op)
        widen = workload.widen or (lambda arguments: converted(arguments, torch.float64, dtype))
        exact = workload.call(plain_op, widen(fresh()))
        plain = errors(workload.call(plain_op, fresh()), exact)

        @functools.cache
        def allowed(several: bool) -> list[float]:
            drawn = draws(workload, plain_op, fresh()) if several and dtype is torch.float32 else ()
            largest = map(max, zip(plain, *(errors(results, exact) for results in drawn)))
            return [2 * error + slack(dtype) for error in largest]

    replays: dict[str, Replay] = {}
    for name, candidate in candidates.items():
        row = rows[name] = {"status": "ok"}
        if candidate.absent is not None:
            row["status"] = f"absent: {candidate.absent}"
            continue
        own = [fresh()] if workload.own else sets
        try:
            if workload.checked and candidate.checked:
                row["error"] = errors(workload.call(candidate.proof or candidate.op, own[0]), exact)
                if not any(all(map(operator.le, row["error"], allowed(several))) for several in (False, True)):
                    row["status"] = f"wrong: errors {row['error']} against float64, allowed {allowed(True)}"
                    continue

            def call(arguments: tuple[Any, ...], op: Callable[..., Any] = candidate.op) -> list[torch.Tensor]:
                return workload.call(op, arguments)

            replays[name] = prepare(workload, call, own, device)
            if workload.score is not None:
                row |= workload.score(call(own[0]))
            if device == "cuda":
                row["launches"] = launches(lambda: call(own[0]))
        except hrm_kernels.BackendUnavailable as error:
            row["status"] = f"unavailable: {error}"
        except ImportError as error:  # a package that is there, but not what it needs
            row["status"] = f"absent: {error}"
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            row["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    if workload.checked:
        del exact
    if not replays:
        return rows
    turn = _warm_up(replays, device)
    turns = take_turns(replays, device, rounds(turn), patience)
    for name, times in turns.times.items():
        rows[name] |= {"mode": replays[name][2], "calls": replays[name][1], "times": times}
        rows[name] |= {"waited": statistics.median(turns.waits[name] or [0.0]), "disturbed": turns.disturbed}
    return rows


def _warm_up(replays: dict[str, Replay], device: str) -> float:
    """Two turns, one where they are long. Returns the seconds of the last."""
    turn = 0.0
    for _ in range(2):
        if turn < 0.5:
            start = time.perf_counter()
            take_turns(replays, device, 1)
            turn = time.perf_counter() - start
    return turn


def summary(times: list[float]) -> dict[str, float]:
    """Median, lowest and highest tenth."""
    tenths = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return {"seconds": statistics.median(times), "low": tenths[0], "high": tenths[-1]}


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.timing", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--backends", nargs="+", default=["reference", "triton"])
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU: to try this script out")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no torch.compile, no long sequences")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing after that")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    rounds = 2 if options.tiny else QUICK_ROUNDS if options.quick else ROUNDS

    before = options.file.read_text().splitlines() if options.file.exists() else []
    # a run that broke off goes on after what broke it
    started = {(line["workload"], line.get("backend")) for line in map(json.loads, before)}

    def write(**row: Any) -> None:
        with options.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    if ("ceilings", None) not in started:
        write(workload="ceilings", **ceilings(options.device, options.tiny))
    # what compiles for a minute comes last
    turns = [(one, "all") for one in published(options.tiny, long=not options.quick)]
    if not (options.quick or options.tiny):
        turns += [(workload, COMPILE) for workload, _ in turns if workload.compiled]
    for workload, which in turns:
        if (workload.name, which) in started:
            continue
        if time.monotonic() > deadline:
            write(workload=workload.name, backend=which, status="skipped: out of time")
            continue
        write(workload=workload.name, backend=which, status="started")
        common = {"workload": workload.name, "dtype": options.dtype}
        if which == COMPILE:
            torch._dynamo.reset()
            compiled = torch.compile(workload.op, fullgraph=True, dynamic=False)
            candidates = {COMPILE: Candidate(on_backend("reference", compiled))}
        else:
            (timed,) = workload.ways.values() if workload.ways else (workload.op,)
            candidates = {b: Candidate(on_backend(b, timed), on_backend(b, workload.op)) for b in options.backends}
        try:
            rows = measure(workload, options.device, DTYPES[options.dtype], candidates, lambda turn: rounds)
        except Exception as error:
            write(**common, backend=which, status=f"failed: {type(error).__name__}: {str(error).splitlines()[0]}")
            if "CUDA error" in str(error):
                return 3  # nothing runs after it in this process
            continue
        for name, row in rows.items():
            row |= summary(row.pop("times")) if "times" in row else {}
            write(**common, backend=name, **row, bytes=workload.bytes, operations=workload.operations)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure both backends of a CPU: the ops of :mod:`hrm_kernels.tuning.cpu`, at sizes of models, in turns."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrm_kernels.autodiff import each, tensors
from hrm_kernels.backends import _ops, use_backend
from hrm_kernels.casts import frozen_weights
from hrm_kernels.instruction_sets import DTYPES
from hrm_kernels.ops import specs
from hrm_kernels.spec import Random, Sizes
from hrm_kernels.tuning.cpu import MEASURED, Times, size

BACKENDS = ("cpu", "reference")

CALM = 0.05
"""The share of a turn that threads may wait for a core; longer waits disturb the turn."""

LEAST, MOST = 5, 25
"""Turns per call."""

TURN = 1e-3
"""Seconds that a turn of one backend takes at least; short calls are repeated."""

_SMALL = Sizes(S=16, D=64, H=2, d=32, I=256, layers=2)  # sudoku4
_MIDDLE = Sizes(S=82, D=128, H=2, d=64, I=512, layers=2)
_LARGE = Sizes(S=82, D=512, H=8, d=64, I=1536, layers=2)  # the published models
_BLOCKS = [replace(_SMALL, B=B) for B in (1, 8, 64)] + [replace(_MIDDLE, B=B) for B in (1, 8)]
_BLOCKS += [replace(_LARGE, B=B) for B in (1, 8)]
_POINTWISE = [replace(_SMALL, B=B) for B in (1, 8, 64)]
_POINTWISE += [replace(sizes, B=B) for sizes in (_MIDDLE, _LARGE) for B in (1, 8)]

SIZES: dict[str, Sequence[Sizes]] = {
    "adam_atan2": [Sizes(D=64, I=64, layers=8), Sizes(D=512, I=1536, layers=8)],
    "add_rms_norm": _POINTWISE,
    "conv_cycles": [replace(one, H_cycles=1) for one in _BLOCKS],
    "conv_swiglu": _POINTWISE,
    "linear": [
        Sizes(rows, None, D=columns, I=outputs, bias=False)
        for columns, outputs in ((64, 6), (128, 128), (512, 11), (512, 512), (512, 1536))
        for rows in (1, 16, 82, 656)
    ],
    "recurrent_cycles": [one for one in _BLOCKS if one.D != 128],
    "rope_attention": [replace(_SMALL, B=B) for B in (1, 8, 64)]
    + [replace(_LARGE, B=B) for B in (1, 8)]
    + [replace(_LARGE, B=1, S=901)],
    "sparse_sign_sgd": [Sizes(B, D=512, V=1000) for B in (8, 384)],
    "stablemax_cross_entropy": [Sizes(B, 81, V=11) for B in (1, 8, 64)],
    "swiglu": _POINTWISE,
    "token_mixing": [Sizes(B, 36, D=128, I=256) for B in (1, 8, 32)] + [Sizes(B, 81, D=512, I=256) for B in (1, 8)],
    "transformer_block": _BLOCKS,
}


class Problem(NamedTuple):
    """A call to time.

    Attributes:
        op, dtype: names.
        gradients: whether a backward follows.
        sizes: of the arguments.
    """

    op: str
    dtype: str
    gradients: bool
    sizes: Sizes

    def arguments(self) -> tuple[Any, ...]:
        """Those of the public function; leaves that want gradients, or weights that stay the same, as in solving."""
        table = _ops[self.op]
        dtype = DTYPES[self.dtype]
        sample = table.spec.sample(self.sizes, Random(dtype=dtype))
        if table.spec.changed is not None:
            return sample

        def prepared(one: Tensor) -> Tensor:
            if self.gradients:
                return one.requires_grad_(one.dtype == dtype)
            return nn.Parameter(one, requires_grad=False) if one.is_floating_point() and one.ndim <= 2 else one

        names = list(table.signature.parameters)
        return tuple(one if name in ("cos", "sin") else each(prepared, one) for name, one in zip(names, sample))

    def call(self, arguments: Sequence[Any]) -> list[Tensor]:
        """What is timed; returns every result."""
        outputs = getattr(import_module(f"hrm_kernels.ops.{self.op}"), self.op)(*arguments)
        return self._results(outputs, arguments)

    def exact(self, arguments: Sequence[Any]) -> list[Tensor]:
        """The results in float64, by the op's oracle."""

        def widened(one: Tensor) -> Tensor:
            wide = one.detach().double() if one.is_floating_point() else one
            return wide.requires_grad_(one.requires_grad)

        wide = each(widened, tuple(arguments))
        spec = _ops[self.op].spec
        outputs = spec.oracle(*wide)
        return list(outputs) if spec.changed is not None else self._results(outputs, wide)

    def _results(self, outputs: Any, arguments: Sequence[Any]) -> list[Tensor]:
        changed = _ops[self.op].spec.changed
        if changed is not None:
            return changed(*arguments)
        several = list(outputs) if isinstance(outputs, tuple) else [outputs]
        if not self.gradients:
            return several
        leaves = [one for one in tensors(arguments) if one.requires_grad]
        return [*several, *torch.autograd.grad(several[0], leaves, torch.ones_like(several[0]))]

    def __str__(self) -> str:
        rows, width = self.size()
        return f"{self.op}, {self.dtype}, {rows} x {width}{', with gradients' if self.gradients else ''}"

    def size(self) -> tuple[int, int]:
        table = _ops[self.op]
        return size(self.op, table.unflatten(*self.arguments()))


def problems(ops: Sequence[str] = MEASURED) -> Iterator[Problem]:
    """Every call that is timed and that the ``cpu`` backend serves."""
    all_specs = specs()
    for op in ops:
        spec = all_specs[op]
        for dtype in DTYPES:
            for sizes in SIZES[op]:
                for gradients in (False, True) if spec.differentiates else (False,):
                    problem = Problem(op, dtype, gradients, sizes)
                    if _ops[op].reason("cpu", *_ops[op].unflatten(*problem.arguments())) is None:
                        yield problem


def measure(problem: Problem, seconds: float) -> Times | None:
    """The times of both backends, in turns; None where other programs disturbed the turns.

    Raises:
        RuntimeError: a result of the ``cpu`` backend is wrong.
    """
    calls: dict[str, Callable[[], Any]] = {}
    check(problem)
    for name in BACKENDS:
        arguments = problem.arguments()
        calls[name] = lambda arguments=arguments: problem.call(arguments)  # type: ignore[misc]
    with nullcontext() if problem.gradients else torch.no_grad(), frozen_weights():
        medians = take_turns(calls, seconds)
    if medians is None:
        return None
    rows, width = problem.size()
    cpu, pytorch = (round(1e6 * medians[name], 2) for name in BACKENDS)
    direction = "gradients" if problem.gradients else "forward"
    return Times(problem.op, problem.dtype, direction, width, rows, cpu, pytorch)


def check(problem: Problem) -> None:
    """
    Raises:
        RuntimeError: an error against float64 is more than twice that of plain PyTorch, and more than a few roundings.
    """
    exact = problem.exact(problem.arguments())
    errors = {}
    for name in BACKENDS:
        with use_backend(name):
            results = problem.call(problem.arguments())
        errors[name] = [_error(one, right) for one, right in zip(results, exact, strict=True)]
    eps = torch.finfo(DTYPES[problem.dtype]).eps
    few = eps * (8 if problem.dtype == "float32" else 1)
    for ours, plain in zip(errors["cpu"], errors["reference"]):
        if not ours <= 2 * plain + few:
            raise RuntimeError(f"{problem}: the error of cpu is {ours:.2g}, that of plain PyTorch {plain:.2g}")


def _error(result: Tensor, exact: Tensor) -> float:
    """The largest error, relative to the largest value."""
    if not exact.numel():
        return 0.0
    return ((result.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)).item()


def take_turns(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float] | None:
    """Median seconds of a call, by backend; about ``seconds`` are spent.

    Those of the others are the first one's times their median factor within a turn: what slows the machine for a while
    slows all of them.

    One thread is timed by its CPU time, which does not count waiting for a core; several threads by the clock on the
    wall. Turns in which a thread waited for a core do not count. If that leaves too few, all turns of one thread
    count, and several threads have no result.
    """
    is_alone = torch.get_num_threads() == 1
    clock = time.thread_time if is_alone else time.perf_counter
    repeats = dict.fromkeys(calls, 1)
    began = time.perf_counter()
    for name, call in calls.items():
        with use_backend(name):
            call()  # packs weights, allocates
            start = time.perf_counter()
            call()
            repeats[name] = max(1, int(TURN / max(time.perf_counter() - start, 1e-9)))
    turns: list[tuple[dict[str, float], float]] = []
    calm: list[dict[str, float]] = []
    while len(calm) < MOST and (len(turns) < LEAST or time.perf_counter() - began < seconds):
        waited, start = seconds_waited(), time.perf_counter()
        turn = {}
        for name, call in calls.items():
            with use_backend(name):
                before = clock()
                for _ in range(repeats[name]):
                    call()
                turn[name] = (clock() - before) / repeats[name]
        share = (seconds_waited() - waited) / (time.perf_counter() - start)
        turns.append((turn, share))
        calm += [turn] if share <= CALM else []
    counted = calm if len(calm) >= LEAST else [turn for turn, _ in turns] if is_alone else []
    if not counted:
        return None
    first = next(iter(calls))
    seconds_of_first = statistics.median(turn[first] for turn in counted)
    return {name: seconds_of_first * statistics.median(turn[name] / turn[first] for turn in counted) for name in calls}


def seconds_waited() -> float:
    """Seconds that threads of this process have waited for a core, as Linux counts them; 0 where it does not."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(file.read_text().split()[1])
        except (OSError, LookupError, ValueError):  # the thread has ended, or this kernel does not count
            continue
    return total / 1e9

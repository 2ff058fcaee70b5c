"""What is measured for the goals: workloads, candidates, and the goals that judge them.

``ours`` is the automatic choice of a backend, as for a user. ``PyTorch`` is the published computation in plain PyTorch;
in the cases of the published code it is that code without ``patch``.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import fma, models, tiles
from bench.cpu_goals.goals import Goal
from bench.cpu_goals.machine import Machine
from bench.inputs import OPS
from bench.measure import Candidate
from bench.model_workloads import patched, segment, segment_of, training_step, training_step_of
from bench.processes import ROOT
from bench.sizes import LONG, SHORT, Size
from bench.workload import Workload, on_backend
from bench.workloads import adam_atan2, op_workload, sparse_sign_sgd
from hrm.config import TRMConfig
from hrm.model import HRM, Batch, Carry
from hrm_kernels import specs

BF16, F32 = torch.bfloat16, torch.float32
SLOW = "PyTorch emulates bfloat16 on this CPU, many times slower than float32"


@dataclass(frozen=True)
class Case:
    """Candidates that take turns.

    Attributes:
        part: of the command line.
        weight: the share of the time that it gets, compared with other cases.
        goals: those with the same ``summary`` are shown as one line, by the lowest.
    """

    part: str
    workload: Workload
    dtype: torch.dtype
    candidates: dict[str, Candidate]
    goals: tuple[Goal, ...]
    weight: float = 1.0
    summary: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether any of its goals applies."""
        return any(goal.not_here is None for goal in self.goals)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pytorch(dtype: torch.dtype) -> str:
    return f"PyTorch {_name(dtype)}"


def _candidates(workload: Workload, dtype: torch.dtype, others: tuple[str, ...]) -> dict[str, Candidate]:
    """``ours``, and PyTorch in the dtypes and the peaks that ``others`` name."""
    eager = workload.eager or on_backend("reference", workload.op)
    operations, rows = workload.cost.operations, workload.batch * workload.positions
    chosen = {"ours": Candidate(on_backend(None, workload.op))}
    known = {
        _pytorch(dtype): lambda: Candidate(eager),
        _pytorch(F32): lambda: Candidate(eager, is_checked=False, dtype=None if dtype is F32 else F32),
        fma.ALONE: lambda: _peak(fma.multiply_adds(operations), fma.absent_reason()),
        tiles.ALONE: lambda: _peak(tiles.products(operations, rows), tiles.absent_reason()),
        "unpatched": lambda: Candidate(eager),
    }
    return chosen | {name: known[name]() for name in others}


def _peak(run: Callable[..., Any], absent_reason: str | None) -> Candidate:
    return Candidate(run, is_checked=False, absent_reason=absent_reason)


def segments(machine: Machine) -> Iterator[Case]:
    for batch in (1, 8, 32):
        yield from _segments(machine, batch)


def _segments(machine: Machine, batch: int) -> Iterator[Case]:
    what, weight = f"segment, batch {batch}", batch + 2
    workload = segment(Size(batch, SHORT), F32.itemsize)
    goal = Goal(f"{what}, float32", others=(fma.ALONE,), least=0.8)
    if batch == 1:
        goal = Goal(f"{what}, float32", others=(_pytorch(F32),), least=1.8)
    checked, candidates = _checked(workload, _candidates(workload, F32, goal.others))
    yield Case("segment", checked, F32, candidates, (goal,), weight)
    is_slow = batch > 1 and not machine.has_bfloat16
    pytorch = (_pytorch(F32),) if is_slow else (_pytorch(BF16), _pytorch(F32))
    narrow = partial(Goal, f"{what}, bfloat16")
    goals = [
        narrow(others=(_pytorch(BF16),), least=4 if batch == 1 else 3, not_here=machine.no_amx),
        narrow(most_seconds=12e-3, not_here=machine.no_amx)
        if batch == 1
        else narrow(others=(tiles.ALONE,), least=0.55, not_here=machine.no_amx),
        narrow(others=pytorch, least=0.97, not_here=SLOW if batch > 8 and not machine.has_bfloat16 else None),
    ]
    workload = segment(Size(batch, SHORT), BF16.itemsize)
    candidates = _candidates(workload, BF16, (*pytorch, *((tiles.ALONE,) if machine.has_amx else ())))
    checked, candidates = _checked(workload, candidates)
    yield Case("segment", checked, BF16, candidates, tuple(goals), weight)


def _checked(
    workload: Workload, candidates: dict[str, Candidate], rows: int = 2
) -> tuple[Workload, dict[str, Candidate]]:
    """The same, but only the first rows of ``ours`` are checked: float64 takes long, and no row depends on another."""
    eager = workload.eager
    if workload.batch <= rows or eager is None:
        return workload, candidates

    def eager_of_first(model: HRM, carry: Carry, batch: Batch) -> list[torch.Tensor]:
        first = {name: values[:rows] for name, values in batch.items()}
        data = {name: values[:rows] for name, values in carry.current_data.items()}
        z_H, z_L, steps, halted = (values[:rows] for values in (carry.z_H, carry.z_L, carry.steps, carry.halted))
        return eager(model, Carry(z_H, z_L, steps, halted, data), first)

    def first_of_ours(*arguments: Any) -> list[torch.Tensor]:
        return [result[:rows] for result in candidates["ours"].op(*arguments)]

    unchecked = {name: replace(one, is_checked=False) for name, one in candidates.items()}
    ours = Candidate(candidates["ours"].op, checked_op=first_of_ours)
    return replace(workload, eager=eager_of_first), unchecked | {"ours": ours}


def training(machine: Machine) -> Iterator[Case]:
    for batch in (2, 8):
        yield from _float32_and_bfloat16(
            "train",
            f"training step, batch {batch}",
            training_step(Size(batch, SHORT), F32.itemsize),
            machine,
            (2.5, 1.5),
            3 * batch,
        )


def _float32_and_bfloat16(
    part: str, what: str, workload: Workload, machine: Machine, least: tuple[float, float], weight: float
) -> Iterator[Case]:
    """Compare with PyTorch in bfloat16 on AMX (``least[0]``), and in float32 on any CPU (``least[1]``)."""
    wide = Goal(f"{what}, float32", others=(_pytorch(F32),), least=least[1])
    yield Case(part, workload, F32, _candidates(workload, F32, wide.others), (wide,), weight)
    both, slow = (_pytorch(BF16), _pytorch(F32)), None if machine.has_bfloat16 else SLOW
    narrow = Goal(f"{what}, bfloat16", others=both[:1], least=least[0], not_here=machine.no_amx)
    never = Goal(f"{what}, bfloat16", others=both, least=0.97, not_here=slow)
    yield Case(part, workload, BF16, _candidates(workload, BF16, both), (narrow, never), weight)


def published_code(machine: Machine) -> Iterator[Case]:
    """The published code after ``hrm_kernels.patch``, against itself.

    The first call of a patched model takes five to ten times as long as later ones. So batches are small in float32.
    """
    models_of: dict[str, Callable[..., Any]] = {
        "HRM": _hrm,
        "TRM": partial(_trm, False),
        "TRM mlp_t": partial(_trm, True),
    }
    for dtype, batch in ((F32, 2), (BF16, 8)):
        for name, make in models_of.items():
            for training in (False, True):
                what = f"patched {name}, batch {batch}, {'training' if training else 'evaluation'}, {_name(dtype)}"
                workload = patched(what, partial(make, batch), training)
                goal = Goal(what, others=("unpatched",), least=1.2)
                goals = [goal]
                if dtype is BF16:
                    goals = [replace(goal, not_here=None if machine.has_bfloat16 else SLOW)]
                    if machine.has_amx:
                        goals = [replace(goal, least=2.0), replace(goal, least=1.0)]
                candidates = _candidates(workload, dtype, ("unpatched",))
                yield Case("published", workload, dtype, candidates, tuple(goals), 4 if training else 3)


def mixing(machine: Machine) -> Iterator[Case]:
    """TRM with ``mlp_t``: of the published size, and the shipped ``sudoku6``."""
    for what, make, batch, weight in (
        ("TRM mlp_t", partial(_trm, True), 2, 4.0),
        ("sudoku6", _sudoku6, 32, 1.0),
    ):
        goals = (2.5, 1.5)
        name = f"{what}, segment, batch {batch}"
        workload = segment_of(name, partial(make, batch))
        yield from _float32_and_bfloat16("mlp_t", name, workload, machine, goals, weight)
        name = f"{what}, training step, batch {batch}"
        workload = training_step_of(name, partial(make, batch))
        yield from _float32_and_bfloat16("mlp_t", name, workload, machine, goals, 2 * weight)


def ops(machine: Machine) -> Iterator[Case]:
    """Every op of the suites; the float32 calls are compared with PyTorch's float32, the bfloat16 calls with both."""
    for dtype in (F32, BF16):
        for workload, weight in op_workloads(dtype.itemsize):
            others = (_pytorch(F32),) if dtype is F32 else (_pytorch(BF16), _pytorch(F32))
            goal = Goal(f"{workload.name}, {_name(dtype)}", others=others, least=0.97)
            candidates = _candidates(workload, dtype, others)
            yield Case("ops", workload, dtype, candidates, (goal,), weight, f"every op, {_name(dtype)}")
    for workload in (adam_atan2(), sparse_sign_sgd(384)):
        goal = Goal(f"{workload.name}, float32", others=(_pytorch(F32),), least=0.97)
        yield Case("ops", workload, F32, _candidates(workload, F32, goal.others), (goal,), 0.5, "every op, float32")


def op_workloads(itemsize: int) -> Iterator[tuple[Workload, float]]:
    """Ops at the published width and the share of time of each: a reduced set of ``bench_ops`` and ``bench_block``."""
    for op in OPS:
        is_long = op == "reasoning_module" or not specs()[op].differentiates  # passes over a module, many updates
        for batch in (1,) if is_long else (1, 8):
            for backward in (False,) if is_long else (False, True):
                yield op_workload(op, Size(batch, SHORT), backward, itemsize=itemsize), 0.4
    for backward in (False, True):
        yield op_workload("rope_attention", Size(1, LONG), backward, itemsize=itemsize), 0.4


PARTS: dict[str, Callable[[Machine], Iterator[Case]]] = {
    "segment": segments,
    "train": training,
    "published": published_code,
    "mlp_t": mixing,
    "ops": ops,
}


def _hrm(batch: int, device: str, dtype: torch.dtype) -> Any:
    return models.published_model(Size(batch, SHORT), device, dtype)


def _trm(mixes: bool, batch: int, device: str, dtype: torch.dtype) -> Any:
    """The published TRM for Sudoku."""
    config = TRMConfig.parse(
        {
            "seq_len": SHORT - 1,
            "vocab_size": 11,
            "num_puzzle_identifiers": models.IDENTIFIERS,
            "puzzle_emb_ndim": 512,
            "mlp_t": mixes,
            "pos_encodings": "none" if mixes else "rope",
            "forward_dtype": _name(dtype),
        }
    )
    return models.random_model(config, batch, device)


def _sudoku6(batch: int, device: str, dtype: torch.dtype) -> Any:
    """A model of the size of the shipped ``sudoku6``."""
    values = json.loads((ROOT / "hrm" / "models" / "sudoku6" / "config.json").read_text())["model"]
    return models.random_model(TRMConfig.parse(values | {"forward_dtype": _name(dtype)}), batch, device)

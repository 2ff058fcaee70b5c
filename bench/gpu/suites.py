"""What the timing parts of ``make gpu`` measure, and which candidates take part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from bench.measure import Candidate
from bench.peers import PEERS
from bench.sizes import LONG, SHORT, Size
from bench.workload import Workload, on_backend
from bench.workloads import adam_atan2, op_workload, sparse_sign_sgd

Candidates = dict[str, Candidate]


@dataclass(frozen=True)
class Suite:
    """
    Attributes:
        workloads: takes whether sizes are for a try on a CPU. Raises ImportError where a requirement is missing.
        more: further candidates of a workload on a device, besides the backends.
        compiled: torch.compile takes part, after everything else.
    """

    workloads: Callable[[bool], Sequence[Workload]]
    more: Callable[[Workload, str], Candidates] = lambda workload, device: {}
    compiled: bool = False


def on_path(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on the triton backend, with blocks on a path of :data:`hrm_kernels.tuning.table.CANDIDATES`."""

    def run(*arguments: Any) -> Any:
        with patch("hrm_kernels.tuning.choose", lambda *rest: name):
            return on_backend("triton", op)(*arguments)

    return run


def paths(workload: Workload, device: str) -> Candidates:
    """Every path of a block without gradients."""
    if device != "cuda":
        return {}
    from hrm_kernels.ops.transformer_block.triton_block import PATHS

    return {name: Candidate(on_path(name, workload.op)) for name in PATHS}


def peers(workload: Workload, device: str) -> Candidates:
    """Other packages that compute the same."""
    return {
        peer.name: Candidate(
            peer.op, is_checked=peer.is_same, absent_reason=peer.absent_reason(device, workload.backward)
        )
        for peer in PEERS
        if peer.kind == workload.kind
    }


def ops(tiny: bool = False) -> Iterator[Workload]:
    """Ops and optimisers: S = 82 and batch 384 (Sudoku) unless the name says otherwise."""
    size = _many(tiny)
    single = replace(size, batch=1)
    for op in ("add_rms_norm", "swiglu", "rope_attention"):
        yield from _both(op, size, op)
    yield from long_attention(tiny)
    yield from _both("transformer_block", size, "transformer_block")
    yield op_workload("transformer_block", single, name="transformer_block batch 1", is_compiled=False)
    for rows, name in ((size, "reasoning_module"), (single, "reasoning_module batch 1")):
        yield op_workload("reasoning_module", rows, name=name, is_compiled=False)
    for rows, name in ((size, "recurrent_cycles"), (single, "recurrent_cycles batch 1")):
        yield op_workload("recurrent_cycles", rows, name=name, is_compiled=False, is_capturable=False)
    # not compiled: the reference computes in float64
    yield from _both("stablemax_cross_entropy", size, "stablemax_cross_entropy", is_compiled=False)
    yield adam_atan2(2 if tiny else 8)
    yield sparse_sign_sgd(size.batch)


def models(tiny: bool = False) -> list[Workload]:
    """An answer to one Sudoku, and the training step with and without a graph.

    Raises:
        ImportError: a requirement of ``hrm`` is not installed.
    """
    from bench.model_workloads import training_step  # needs pydantic and omegaconf

    steps = {"training step": False, "training step, one graph": True}
    return [
        *answer(tiny),
        *(
            replace(training_step(_many(tiny), 2, as_graph), name=name, is_compiled=False, is_checked=False)
            for name, as_graph in steps.items()
        ),
    ]


def answer(tiny: bool = False) -> list[Workload]:
    """An answer to one Sudoku.

    Raises:
        ImportError: a requirement of ``hrm`` is not installed.
    """
    from bench.model_workloads import answer

    return [answer(replace(_many(tiny), batch=1))]


def block(tiny: bool = False) -> list[Workload]:
    """A block without gradients, for many rows and for one."""
    size = _many(tiny)
    return [
        op_workload("transformer_block", rows, name=f"block pass, batch {rows.batch}", is_compiled=False)
        for rows in (size, replace(size, batch=1))
    ]


def short_backward(tiny: bool = False) -> list[Workload]:
    """Attention of 82 positions, forward and with its backward."""
    return list(_both("rope_attention", _many(tiny), "short attention"))


def long_attention(tiny: bool = False) -> list[Workload]:
    """Attention at 901 positions, forward and with its backward."""
    return list(_both("rope_attention", Size(1, 130) if tiny else Size(32, LONG), "rope_attention S=901"))


def _many(tiny: bool) -> Size:
    return Size(2, 5, layers=1) if tiny else Size(384, SHORT)


def _both(op: str, size: Size, name: str, **options: Any) -> Iterator[Workload]:
    yield op_workload(op, size, name=name, **options)
    yield op_workload(op, size, True, f"{name} + backward", **options)


SUITES = {
    "block": Suite(block, paths),
    "short-backward": Suite(short_backward),
    "answer": Suite(answer),
    "long-attention": Suite(long_attention, peers),
    "timings": Suite(lambda tiny: [*ops(tiny), *models(tiny)], compiled=True),
}
"""By part of ``make gpu``."""

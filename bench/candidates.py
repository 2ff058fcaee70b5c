"""Which candidates compute a workload on this machine."""

from collections.abc import Callable
from typing import Any

import torch

from bench import fma
from bench.measure import Candidate
from bench.peers import PEERS
from bench.setup import Setup
from bench.workload import Workload, on_backend

BACKENDS: dict[str, dict[str, str | None]] = {
    "cpu": {"cpu": "cpu"},
    "cuda": {"cuda": "cuda", "triton": "triton", "automatic": None},
}
"""Backends of ``hrm_kernels`` by device; None: each op takes the first that can run it, as for a user."""

COMPILED_BY_DEFAULT = ("transformer_block 8 x 82",)
"""On a CPU torch.compile takes up to minutes; ``--full`` compiles the rest."""


def candidates(workload: Workload, setup: Setup) -> dict[str, Candidate]:
    """By name, ``eager`` first: plain PyTorch, compiled, other packages, and each backend of ``hrm_kernels``.

    In bfloat16 on a CPU plain PyTorch takes part in float32, too.
    """
    backends = BACKENDS[setup.device]
    if workload.variants:
        return _variants(workload, {"eager": "reference", **backends})
    chosen = {"eager": Candidate(workload.eager or on_backend("reference", workload.op))}
    if setup.device == "cpu" and setup.dtype is not torch.float32 and workload.is_checked:
        # a user of plain PyTorch chooses between the two
        chosen["eager, float32"] = Candidate(chosen["eager"].op, dtype=torch.float32)
    if workload.is_compiled and (setup.full or setup.device == "cuda" or workload.name in COMPILED_BY_DEFAULT):
        chosen["compile"] = _compiled(workload, None)
        if setup.full:
            # where we capture a CUDA graph, the compiler must not capture another
            mode = "max-autotune-no-cudagraphs" if workload.is_capturable else "max-autotune"
            chosen["compile, max-autotune"] = _compiled(workload, mode)
    for peer in PEERS:
        if peer.kind == workload.kind:
            chosen[peer.name] = Candidate(
                peer.op, is_checked=peer.is_same, absent_reason=peer.absent_reason(setup.device, workload.backward)
            )
    chosen |= {name: Candidate(on_backend(backend, workload.op)) for name, backend in backends.items()}
    if setup.device == "cpu" and workload.kind == "segment":
        multiply_adds = fma.multiply_adds(workload.cost.operations)
        chosen[fma.ALONE] = Candidate(multiply_adds, is_checked=False, absent_reason=fma.absent_reason())
    return chosen


def _variants(workload: Workload, backends: dict[str, str | None]) -> dict[str, Candidate]:
    return {
        f"{name}, {variant}": Candidate(on_backend(backend, op), checked_op=on_backend(backend, workload.op))
        for name, backend in backends.items()
        for variant, op in (workload.variants or {}).items()
    }


def _compiled(workload: Workload, mode: str | None) -> Candidate:
    if workload.compile_inner is not None:
        return Candidate(workload.compile_inner(lambda function: _Compiled(function, mode)))
    # the choice of a backend stays outside: it would break the graph
    return Candidate(on_backend("reference", _Compiled(workload.eager or workload.op, mode)))


class _Compiled:
    """Compile a function with ``torch.compile`` at its first call: importing the compiler takes seconds."""

    def __init__(self, op: Callable[..., Any], mode: str | None) -> None:
        self.op, self.mode = op, mode
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            self.compiled = torch.compile(self.op, dynamic=False, mode=self.mode)
        return self.compiled(*arguments)

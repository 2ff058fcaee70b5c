"""What is computed: an op or model at one size, and its arguments."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import hrm_kernels
from hrm_kernels.spec import Cost


@dataclass(frozen=True)
class Workload:
    """One op or model at one size.

    Attributes:
        name: op, size and direction.
        make: ``(device, dtype, seed) -> arguments``; every call makes new ones.
        op: takes the arguments.
        backward: compute the gradients of every argument that requires one, too; otherwise run without gradients.
        cost: the fewest bytes (of 2-byte elements) and operations.
        is_capturable: can be captured as a CUDA graph; otherwise calls are timed with their launches.
        is_compiled: ``torch.compile`` of the eager computation is a candidate.
        is_checked: results are compared with float64 before timing.
        is_stateful: calls change the arguments, so each candidate needs its own.
        kind, batch, positions: for tables and plots.
        eager: plain PyTorch in place of ``op``; None is ``op`` on the reference backend.
        to_float64: converts the arguments for ``eager`` in float64; None converts their tensors.
        compile_inner: returns ``eager`` with one of its functions compiled by its argument; None compiles ``eager``.
        variants: several ways to run it, by name, each on every backend; ``op`` then only serves the accuracy check.
        puzzles: number of puzzles that one call solves.
        score: maps a call's results to ``solved`` (the share of right answers), ``segments`` (their mean number) and,
            where known, ``outside`` (the share of time outside the model).
    """

    name: str
    make: Callable[[str, torch.dtype, int], tuple[Any, ...]]
    op: Callable[..., Any]
    backward: bool = False
    cost: Cost = Cost(0, 0)
    is_capturable: bool = True
    is_compiled: bool = True
    is_checked: bool = True
    is_stateful: bool = False
    kind: str = ""
    batch: int = 0
    positions: int = 0
    eager: Callable[..., Any] | None = None
    to_float64: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    compile_inner: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    variants: Mapping[str, Callable[..., Any]] | None = None
    puzzles: int = 0
    score: Callable[[list[torch.Tensor]], dict[str, float | None]] | None = None

    def call(self, op: Callable[..., Any], arguments: tuple[Any, ...]) -> list[torch.Tensor]:
        """Run ``op`` in place of the workload's; return its results, then its gradients."""
        if not self.backward:
            with torch.no_grad():
                return tensors(op(*arguments))
        out = op(*arguments)
        leaves = [t for t in tensors(arguments) if t.requires_grad]
        return [out.detach(), *torch.autograd.grad(out, leaves, _output_gradient(out.shape, out.dtype, out.device))]


@functools.lru_cache(maxsize=8)  # made before the timing
def _output_gradient(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Values that vary, but are the same for every backend and dtype."""
    values = torch.arange(shape[-1], device=device) % 7 - 3
    return (values.to(dtype) / 4).expand(shape).contiguous()


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def on_backend(name: str | None, op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on a backend of ``hrm_kernels``; with None, each call chooses."""

    def run(*arguments: Any) -> Any:
        with hrm_kernels.use_backend(name):
            return op(*arguments)

    return run

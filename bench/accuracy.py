"""Check results against float64: an error may be twice that of plain PyTorch, plus a few roundings."""

import copy
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench.workload import Workload, on_backend


def errors(results: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> list[float]:
    """The largest error of each result, relative to the largest exact value."""
    return [
        ((r.double() - e).abs().max() / e.abs().max().clamp(min=1e-30)).item() if e.numel() else 0.0
        for r, e in zip(results, exact, strict=True)
    ]


def tolerance(dtype: torch.dtype) -> float:
    """How far an error may exceed twice that of plain PyTorch.

    One rounding of the largest value. In float32 long sums round more often than the result is rounded, so eight, as in
    tests/hrm_kernels/test_cpu.py.
    """
    return torch.finfo(dtype).eps * (8 if dtype is torch.float32 else 1)


def converted(value: Any, dtype: torch.dtype, source: torch.dtype) -> Any:
    """``value`` with each tensor of dtype ``source`` replaced by a leaf of dtype ``dtype``."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(dtype).requires_grad_(value.requires_grad) if value.dtype == source else value
    if not isinstance(value, list | tuple):
        return value
    parts = [converted(part, dtype, source) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def perturbed_results(
    workload: Workload, eager: Callable[..., Any], arguments: tuple[Any, ...]
) -> Iterator[list[torch.Tensor]]:
    """Float32 results of plain PyTorch with a model's weights changed by up to one unit in the last place, four times.

    They show how far rounding may go: after a segment, errors of single runs differ by a factor of ten. Arguments
    without a model yield nothing.
    """
    for seed in range(4 if any(isinstance(one, torch.nn.Module) for one in arguments) else 0):
        copies = copy.deepcopy(arguments)  # together, so that optimisers still point to their model's weights
        weights = [w for one in copies if isinstance(one, torch.nn.Module) for w in one.parameters()]
        generator = torch.Generator(weights[0].device).manual_seed(seed)
        with torch.no_grad():
            for weight in weights:
                weight.mul_(1 + (torch.rand(weight.shape, generator=generator, device=weight.device) - 0.5) * 2**-22)
        yield workload.call(eager, copies)


class Oracle:
    """The exact results of a workload, and the errors that a candidate may have.

    Args:
        workload: the workload.
        arguments: returns arguments that a call may change.
        dtype: dtype of the candidates.
    """

    def __init__(self, workload: Workload, arguments: Callable[[], tuple[Any, ...]], dtype: torch.dtype) -> None:
        self._workload, self._arguments, self._dtype = workload, arguments, dtype
        self._eager = workload.eager or on_backend("reference", workload.op)
        to_float64 = workload.to_float64 or (lambda values: converted(values, torch.float64, dtype))
        self._exact = workload.call(self._eager, to_float64(arguments()))
        self._eager_errors = errors(workload.call(self._eager, arguments()), self._exact)

    def errors(self, results: Sequence[torch.Tensor]) -> list[float]:
        return errors(results, self._exact)

    def wrong_reason(self, measured: Sequence[float]) -> str | None:
        """None if the ``measured`` errors are allowed, else a message."""
        for allowed in (lambda: self._allowed(self._eager_errors), lambda: self._allowed_of_perturbed):
            if all(map(operator.le, measured, allowed())):
                return None
        return f"errors {measured} against float64, allowed {self._allowed_of_perturbed}"

    def _allowed(self, reference: Sequence[float]) -> list[float]:
        return [2 * error + tolerance(self._dtype) for error in reference]

    @functools.cached_property
    def _allowed_of_perturbed(self) -> list[float]:
        """The largest errors of several runs: models amplify rounding by chance."""
        if self._dtype is not torch.float32:
            return self._allowed(self._eager_errors)
        perturbed = perturbed_results(self._workload, self._eager, self._arguments())
        runs = [self._eager_errors, *(errors(results, self._exact) for results in perturbed)]
        return self._allowed([max(run) for run in zip(*runs)])

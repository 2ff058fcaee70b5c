"""Parameters in the dtype of the activations: cast once per change, not once per use."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["cast", "graphs_read_copies", "keep_copy", "refresh", "written"]


@dataclass
class _Copy:
    """A parameter in another dtype.

    Attributes:
        values: keeps its address as long as the parameter keeps its layout and device.
        state: ``(address, version)`` of the parameter when the values were made from it.
        kept: an optimiser writes the values together with the parameter, in a CUDA graph too.
    """

    values: torch.Tensor
    state: tuple[int, int]
    kept: bool = False


# by parameter, which this keeps neither alive nor from being copied or pickled without its copies, then by dtype
_copies = WeakTensorKeyDictionary()


class _OfThread(threading.local):
    graphs_read_copies = False


_of_thread = _OfThread()


def cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``weight`` in ``dtype``, differentiable; of a parameter the copy made before, as long as it has not changed.

    Without gradients it is the same tensor object from call to call, with gradients an alias of it whose backward
    brings the gradient to the parameter. When the parameter has changed, the copy is written anew at its old address.
    A parameter in ``dtype`` already comes back itself. Don't write to the result.

    A change is seen by the parameter's version, which every in-place operation of PyTorch counts; assignment to
    ``weight.data`` is seen too, but not writing *into* it (``weight.data.copy_(...)``). Write under ``torch.no_grad()``
    instead, or call ``torch.autograd.graph.increment_version(weight)`` afterwards.

    Tensors that are no parameters, and all under ``torch.compile``, are plainly converted. So are parameters while a
    CUDA graph is captured, because its replays would not see them change; unless :func:`keep_copy` promises that
    whoever changes the parameter writes the copy, or :func:`graphs_read_copies` that whoever replays does.
    """
    if weight.dtype == dtype:
        return weight
    # the exact type: what functorch, FakeTensorMode and sharding wrap has no memory of its own to copy
    if torch.compiler.is_compiling() or type(weight) is not nn.Parameter or weight.is_inference():
        return weight.to(dtype)
    copy = _copies.get(weight, {}).get(dtype)
    if _is_captured(weight) and not (copy and (copy.kept or _of_thread.graphs_read_copies)):
        return weight.to(dtype)
    if copy is None or copy.state != _state(weight):
        copy = _update(weight, dtype)
    if torch.is_grad_enabled() and weight.requires_grad:
        return _Alias.apply(weight, copy.values)
    return copy.values


def _is_captured(weight: torch.Tensor) -> bool:
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


@contextmanager
def graphs_read_copies() -> Iterator[None]:
    """A CUDA graph captured in here reads the copies made before, where they lie: call :func:`refresh` before replays.

    Else it converts each weight in every replay.
    """
    before, _of_thread.graphs_read_copies = _of_thread.graphs_read_copies, True
    try:
        yield
    finally:
        _of_thread.graphs_read_copies = before


def keep_copy(weight: nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
    """The copy of ``weight`` in ``dtype`` that :func:`cast` uses, for an optimiser that from now on writes both.

    After writing both it calls :func:`written`.
    """
    copy = _update(weight, dtype)
    copy.kept = True
    return copy.values


def written(weights: Iterable[torch.Tensor], copies: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Say that ``weights`` and their ``copies`` were written together; those that :func:`cast` uses are as new."""
    for weight in weights:
        for copy in _copies.get(weight, {}).values():
            if copy.values is copies.get(weight):
                copy.state = _state(weight)


def refresh(weights: Iterable[torch.Tensor]) -> None:
    """Write the copies of those ``weights`` that have changed, before a CUDA graph reads them at their addresses."""
    for weight in weights:
        for dtype, copy in _copies.get(weight, {}).items():
            if copy.state != _state(weight):
                _update(weight, dtype)


def _state(weight: torch.Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def _update(weight: torch.Tensor, dtype: torch.dtype) -> _Copy:
    """The copy, made or brought up to date."""
    copies = _copies.setdefault(weight, {})
    copy = copies.get(dtype)
    # an inference tensor could not be saved for a later backward, and has no version
    with torch.inference_mode(False), torch.no_grad():
        if copy is None or not _alike(copy.values, weight):
            copy = copies[dtype] = _Copy(weight.detach().to(dtype), _state(weight))
        elif copy.state != _state(weight):
            copy.values.copy_(weight)
            copy.state = _state(weight)
    return copy


def _alike(values: torch.Tensor, weight: torch.Tensor) -> bool:
    return (values.device, values.shape, values.stride()) == (weight.device, weight.shape, weight.stride())


class _Alias(torch.autograd.Function):
    """``apply(weight, copy)``: the copy's memory, the weight's gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return copy.detach()  # shares the version: a backward after the copy was written anew is an error

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return gradient.to(ctx.dtype), None

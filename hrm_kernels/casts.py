"""Parameters in the dtype of the activations, and when a converted copy may be used again.

PyTorch does not record every write to a parameter: the version counter misses fused optimisers, writes through
``.data``, NumPy, DLPack or the storage, collectives, and other processes. So every call makes a new copy, with two
exceptions: inside :func:`frozen_weights`, and where an optimiser writes the copy together with the parameter
(:meth:`hrm_kernels.optim.AdamATan2.keep_copies`).
"""

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from hrm_kernels.autodiff import in_transform
from hrm_kernels.recycling import empty

__all__ = ["FrozenWeights", "cast", "frozen_weights", "keep_copy", "refresh", "written"]

Function = TypeVar("Function", bound=Callable[..., Any])
State = tuple[int, int]


@dataclass
class _Copy:
    """A parameter in another dtype.

    Attributes:
        weight: the parameter; while this reference exists, no other object gets its ``id``.
        values: the copy; its address stays the same while the parameter keeps its layout and device.
        state: ``(address, version)`` of the parameter when it was copied; None if the copy is stale.
    """

    weight: torch.Tensor
    values: torch.Tensor
    state: State | None

    def bring_up_to_date(self) -> None:
        weight = self.weight
        if self.state == _state(weight):
            return
        # not in inference mode: an inference tensor cannot be saved for backward, and has no version
        with torch.inference_mode(False), torch.no_grad():
            if _alike(self.values, weight):
                self.values.copy_(weight)
            else:
                self.values = _convert(weight, self.values.dtype)
        self.state = _state(weight)


@dataclass
class _Kept:
    """A copy that ``owner``, an optimiser, writes together with the parameter."""

    copy: _Copy
    owner: weakref.ref

    def is_kept(self) -> bool:
        owner = self.owner()
        return owner is not None and owner.copies.get(self.copy.weight) is self.copy.values


class FrozenWeights:
    """A context in which weights do not change: each is cast, and packed for the CPU library, only once.

    The copies live as long as this object, which can be entered many times: :class:`hrm.Engine` does it for each
    segment. It applies to the thread that enters it. Changes that PyTorch counts (in-place operations, steps of any
    ``torch.optim`` optimiser) are noticed; :func:`frozen_weights` lists those that are not.
    """

    def __init__(self) -> None:
        _watch_optimizers()
        self._copies: dict[tuple[int, torch.dtype], _Copy] = {}
        self._packed: dict[Any, tuple[list[torch.Tensor], list[State], Any]] = {}
        self._addresses: set[int] = set()  # of the copies
        self._steps = _steps
        self._outer: list[FrozenWeights | None] = []

    def __enter__(self) -> "FrozenWeights":
        self._outer.append(_of_thread.frozen)
        _of_thread.frozen = self
        return self

    def __exit__(self, *exception: object) -> None:
        _of_thread.frozen = self._outer.pop()

    def refresh(self) -> None:
        """Update the copies in place, before a CUDA graph that was captured inside this context reads them."""
        self._forget_after_steps()
        for copy in self._copies.values():
            copy.bring_up_to_date()

    def cast(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The copy of ``weight``; None if there is none yet and a CUDA graph, which would own it, is being captured."""
        self._forget_after_steps()
        copy = self._copies.get((id(weight), dtype))
        if _is_captured(weight):
            return None if copy is None else copy.values
        if copy is None:
            copy = self._copies[id(weight), dtype] = _Copy(weight, _convert(weight, dtype), _state(weight))
        copy.bring_up_to_date()
        self.add(copy.values)
        return copy.values

    def add(self, values: torch.Tensor) -> None:
        """Note that ``values`` is the copy of a parameter."""
        self._addresses.add(values.data_ptr())

    def knows(self, weights: Iterable[torch.Tensor]) -> bool:
        """Whether these are parameters, views or copies of them. Other tensors may be new in each call, and pile up."""
        return all(
            nn.Parameter in (type(weight), type(weight._base)) or weight.data_ptr() in self._addresses
            for weight in weights
        )

    def packed(self, key: Any, weights: list[torch.Tensor], make: Callable[[], Any]) -> Any:
        """``make()``, or its earlier result for these weights."""
        self._forget_after_steps()
        states = [_state(weight) for weight in weights]
        held = self._packed.get(key)
        if held is None or held[1] != states:
            held = self._packed[key] = weights, states, make()
        return held[2]

    def _forget_after_steps(self) -> None:
        """Drop everything after a step of an optimiser: a fused step does not raise the versions of parameters."""
        if self._steps != _steps:
            self._steps = _steps
            self._packed.clear()
            for copy in self._copies.values():
                copy.state = None


class _OfThread(threading.local):
    frozen: FrozenWeights | None = None


_of_thread = _OfThread()
_kept: dict[int, dict[torch.dtype, _Kept]] = {}  # by id of the parameter, which the optimiser holds
_steps = 0  # of all optimisers


def active() -> FrozenWeights | None:
    """The innermost context that this thread has entered."""
    return _of_thread.frozen


@contextmanager
def frozen_weights() -> Iterator[None]:
    """Declare that the weights used inside do not change: layers cast and pack them once, not in every call.

    For evaluation in a loop. :class:`hrm.Engine` and the functions of ``hrm`` that solve and evaluate enter it
    themselves. In-place operations and steps of ``torch.optim`` optimisers are still noticed. Writes that PyTorch does
    not record are not: through ``.data``, NumPy, DLPack or the storage, by collectives on a parameter, from other
    processes. Leave the context before you make them. It applies to the current thread.
    """
    if _of_thread.frozen is not None:
        yield
        return
    with FrozenWeights():
        yield


def with_frozen_weights(function: Function) -> Function:
    """Decorate a function that uses each weight several times and changes none: weights are frozen during a call."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*arguments, **options)
        with frozen_weights():
            return function(*arguments, **options)

    return call  # type: ignore[return-value]


def cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``weight`` in ``dtype``, differentiable.

    Inside :func:`frozen_weights`, and for a parameter whose optimiser keeps copies, the result is a kept copy: without
    gradients the same tensor in every call, with gradients an alias of it whose backward passes the gradient to the
    parameter. Elsewhere, and always under ``torch.compile``, the weight is converted. A weight that already has
    ``dtype`` is returned itself. Do not write to the result.

    While a CUDA graph is captured, only existing copies are used, because replays write no new ones. Call
    :meth:`FrozenWeights.refresh` or :func:`refresh` before a replay.
    """
    if weight.dtype == dtype:
        return weight
    # exactly this type: tensors wrapped by functorch, FakeTensorMode or sharding have no memory of their own to copy
    if torch.compiler.is_compiling() or type(weight) is not nn.Parameter or weight.is_inference():
        return weight.to(dtype)
    frozen, kept = _of_thread.frozen, _kept.get(id(weight), {}).get(dtype)
    values: torch.Tensor | None = None
    if kept is not None and kept.is_kept():
        if not _is_captured(weight):
            kept.copy.bring_up_to_date()
        values = kept.copy.values
        if frozen is not None:
            frozen.add(values)
    elif frozen is not None:
        values = frozen.cast(weight, dtype)
    if values is None:
        values = _convert(weight, dtype)
    if torch.is_grad_enabled() and weight.requires_grad:
        return _Alias.apply(weight, values)
    return values


def keep_copy(weight: nn.Parameter, dtype: torch.dtype, owner: Any) -> torch.Tensor:
    """A copy of ``weight`` in ``dtype`` for :func:`cast`, which ``owner`` writes whenever it writes the parameter.

    ``owner`` is an optimiser. It puts the copy into its ``copies``, writes both, and then calls :func:`written`.
    :func:`cast` uses the copy for as long as it is in ``copies``.
    """
    _watch_optimizers()
    copy = _Copy(weight, _convert(weight, dtype), _state(weight))
    number = id(weight)
    _kept.setdefault(number, {})[dtype] = _Kept(copy, weakref.ref(owner, lambda _: _kept.pop(number, None)))
    return copy.values


def written(weights: Iterable[torch.Tensor], copies: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Report that ``weights`` and their ``copies`` were written together, so that :func:`cast` may use the copies."""
    for weight in weights:
        for kept in _kept.get(id(weight), {}).values():
            if kept.copy.values is copies.get(weight):
                kept.copy.state = _state(weight)


def refresh(weights: Iterable[torch.Tensor]) -> None:
    """Update the kept copies of ``weights`` that have changed, before a CUDA graph reads them."""
    for weight in weights:
        for kept in _kept.get(id(weight), {}).values():
            kept.copy.bring_up_to_date()


@functools.cache
def _watch_optimizers() -> None:
    def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        global _steps
        _steps += 1
        if _kept:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    for kept in _kept.get(id(weight), {}).values():
                        if kept.owner() is not optimizer:
                            kept.copy.state = None

    register_optimizer_step_post_hook(after_step)


def _is_captured(weight: torch.Tensor) -> bool:
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def _state(weight: torch.Tensor) -> State:
    return weight.data_ptr(), weight._version


def _convert(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        if weight.device.type == "cpu" and weight.is_contiguous():  # on the memory of an earlier copy: no page faults
            return empty(*weight.shape, dtype=dtype).copy_(weight)
        return weight.detach().to(dtype)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is memory of its own, outside transforms, dispatch modes and vmap."""
    if torch.compiler.is_compiling() or in_transform() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    is_batched = torch._C._functorch.is_legacy_batchedtensor(tensor)  # torch.autograd.grad(is_grads_batched=True)
    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and not is_batched


def _alike(values: torch.Tensor, weight: torch.Tensor) -> bool:
    return (values.device, values.shape, values.stride()) == (weight.device, weight.shape, weight.stride())


class _Alias(torch.autograd.Function):
    """``apply(weight, copy)``: the copy's memory, the weight's gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return copy.detach()  # shares the version: a backward after the copy has been rewritten is an error

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled() or not _is_plain(gradient):
            return gradient.to(ctx.dtype), None
        return _convert(gradient, ctx.dtype), None

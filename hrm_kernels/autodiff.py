"""Differentiation that kernels do not do: second-order gradients, forward mode, torch.func.

A kernel computes a result, or its first-order gradient, from plain memory. Plain PyTorch does the rest:
:func:`kernels_cannot_serve` sends a call to the reference, :func:`first_order` sends a backward there.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F

__all__ = [
    "attention",
    "each",
    "first_order",
    "has_tangent",
    "in_transform",
    "is_negated",
    "kernels_cannot_serve",
    "tensors",
    "traced_as_constant",
    "without_tangents",
]

T = TypeVar("T")
_LISTS = (list, tuple)  # built once: every launch reads it
Again = Callable[[Any], tuple[Callable[..., Any], Sequence[Any]]]
"""``again(ctx) -> (function, arguments)``: the forward in PyTorch, and its first arguments as ctx saved them."""


def tensors(arguments: Sequence[Any]) -> Iterator[torch.Tensor]:
    """All tensors among ``arguments`` and in their lists and tuples."""
    for value in arguments:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def each(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """``value`` with every tensor in it, its lists and its tuples replaced by ``function(tensor)``."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        inner = [each(function, one) for one in value]
        # a named tuple, such as BlockWeights, takes its fields one by one
        return type(value)(*inner) if hasattr(value, "_fields") else type(value)(inner)
    return value


def traced_as_constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of plain values: torch.compile calls it while it traces, and takes the result as constant.

    ``torch.compiler.assume_constant_result`` does the same, but imports torch._dynamo, and with it Triton, at once.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class _OfThread(threading.local):
    differentiates = False


_of_thread = _OfThread()


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``scaled_dot_product_attention``, made of operations that differentiate in any mode where that is needed.

    PyTorch's fused kernels have neither second-order gradients nor forward mode.
    """
    if _of_thread.differentiates or in_transform() or _level() >= 0:
        return torch.ops.aten._scaled_dot_product_attention_math(q, k, v)[0]
    return F.scaled_dot_product_attention(q, k, v)


@traced_as_constant
def in_transform() -> bool:
    """Whether a transform of torch.func is active (also while torch.compile traces one)."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_batched(gradient: torch.Tensor | None) -> bool:
    """Whether it comes from ``torch.autograd.grad(is_grads_batched=True)``, which has its own vmap."""
    return gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)


def kernels_cannot_serve(arguments: Sequence[Any]) -> str | None:
    """Why only the reference can run a call, because of the active differentiation; None where kernels can."""
    if in_transform():
        return "kernels read plain memory, and the call is inside a transform of torch.func (grad, vmap, jvp, ...)"
    if has_tangent(arguments):
        return "kernels have no forward-mode gradients, and an argument carries a tangent"
    return None


@traced_as_constant
def _level() -> int:
    """The level of forward-mode differentiation; below 0 where it is not active."""
    return forward_mode._current_level


def may_differentiate() -> bool:
    """Whether gradients are recorded, or forward-mode differentiation is active."""
    return torch.is_grad_enabled() or _level() >= 0


def has_tangent(arguments: Sequence[Any]) -> bool:
    """Whether one of ``arguments`` carries a tangent of forward-mode differentiation."""
    if _level() < 0:  # the usual case, without looking at any tensor
        return False
    if torch.compiler.is_compiling():  # tangents are not visible then
        return True
    return any(forward_mode.unpack_dual(one).tangent is not None for one in tensors(arguments))


def without_tangents(value: T) -> T:
    """``value``, detached where forward-mode differentiation is active: a constant, as under no_grad.

    Elsewhere it is the same object, so that what is cached for a weight is found again.
    """
    if _level() < 0:
        return value
    return each(torch.Tensor.detach, value)


def is_negated(arguments: Sequence[Any]) -> bool:
    """Whether one of ``arguments`` is lazily negated, such as the imaginary part of a conjugate: its memory is not."""
    for value in arguments:
        if isinstance(value, torch.Tensor):
            if value.is_neg():
                return True
        elif isinstance(value, _LISTS) and is_negated(value):
            return True
    return False


def first_order(again: Again) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate ``backward`` of an autograd.Function of kernels, which computes only first-order gradients.

    Under ``create_graph=True`` its result must be differentiable, and under vmap (``is_grads_batched``, or
    ``jacobian(vectorize=True)``) gradients are not plain memory. In both cases the reference is differentiated instead.

    Args:
        again: returns a function and its arguments, in the order of ``forward``: gradients are returned in this order.
    """

    def decorate(kernels: Callable[..., Any]) -> Callable[..., Any]:
        def either(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled() or in_transform() or any(map(_is_batched, gradients)):
                of_first = _differentiate(*again(ctx), gradients)
                return *of_first, *(None,) * (len(ctx.needs_input_grad) - len(of_first))
            return kernels(ctx, *gradients)

        @functools.wraps(kernels)
        def backward(ctx: Any, *gradients: Any) -> Any:
            if torch.compiler.is_compiling():  # torch.compile refuses second-order gradients
                return kernels(ctx, *gradients)
            if torch._C._is_any_autocast_enabled():  # the forward has chosen the dtypes
                with torch._C._DisableAutocast():
                    return either(ctx, *gradients)
            return either(ctx, *gradients)

        return backward

    return decorate


def _differentiate(function: Callable[..., Any], arguments: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
    """The gradients of ``arguments``, by autograd through ``function``."""
    _of_thread.differentiates = True
    try:
        with torch.enable_grad():
            # aliases: one tensor may come twice, or be computed from another
            aliases = [one.view_as(one) if isinstance(one, torch.Tensor) else one for one in arguments]
            outputs = function(*aliases)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [
            (out, gradient) for out, gradient in zip(outputs, gradients) if out.requires_grad and gradient is not None
        ]
        leaves = {at: one for at, one in enumerate(aliases) if isinstance(one, torch.Tensor) and one.requires_grad}
        of_leaves = torch.autograd.grad(
            [out for out, _ in pairs],
            list(leaves.values()),
            [dout for _, dout in pairs],
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
    finally:
        _of_thread.differentiates = False
    by_place = dict(zip(leaves, of_leaves))
    return [by_place.get(at) for at in range(len(aliases))]

"""What no kernel differentiates, done by the references: second-order gradients, forward mode and torch.func.

A kernel computes a result, or its first-order gradient, from plain memory. Where more is asked for, plain PyTorch does
it: :func:`kernels_cannot_serve` sends a call to the reference, and :func:`first_order` a backward.
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
_LISTS = (list, tuple)  # (every launch asks)
Again = Callable[[Any], tuple[Callable[..., Any], Sequence[Any]]]
"""``again(ctx) -> (function, arguments)``: in PyTorch what forward did, and its first arguments as ctx kept them."""


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
    """Decorate a function of plain values: torch.compile takes its answer as it finds it, and does not look inside.

    ``torch.compiler.assume_constant_result`` does the same, but it imports torch._dynamo, and Triton with it, at once.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class _OfThread(threading.local):
    differentiates = False


_of_thread = _OfThread()


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``scaled_dot_product_attention``, out of operations that differentiate in any mode where that is needed.

    PyTorch's fused kernels have neither second-order gradients nor forward mode.
    """
    if _of_thread.differentiates or in_transform() or _level() >= 0:
        return torch.ops.aten._scaled_dot_product_attention_math(q, k, v)[0]
    return F.scaled_dot_product_attention(q, k, v)


@traced_as_constant
def in_transform() -> bool:
    """Whether a transform of torch.func is under way (while torch.compile traces one, too)."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_batched(gradient: torch.Tensor | None) -> bool:
    """Whether it is one of many in ``torch.autograd.grad(is_grads_batched=True)``, which has a vmap of its own."""
    return gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)


def kernels_cannot_serve(arguments: Sequence[Any]) -> str | None:
    """Why only the reference can differentiate a call as it is asked to; None where it need not."""
    if in_transform():
        return "kernels read plain memory, and the call is inside a transform of torch.func (grad, vmap, jvp, ...)"
    if has_tangent(arguments):
        return "kernels have no forward-mode gradients, and an argument carries a tangent"
    return None


@traced_as_constant
def _level() -> int:
    """Of forward-mode differentiation; below 0 where none is under way."""
    return forward_mode._current_level


def has_tangent(arguments: Sequence[Any]) -> bool:
    """Whether forward-mode differentiation follows one of ``arguments``."""
    if _level() < 0:  # the usual case, without looking at any tensor
        return False
    if torch.compiler.is_compiling():  # it does not show tangents
        return True
    return any(forward_mode.unpack_dual(one).tangent is not None for one in tensors(arguments))


def without_tangents(value: T) -> T:
    """``value``, detached where forward-mode differentiation is under way: a constant of it, as of no_grad.

    Else it is the same object, so that whatever is kept for a weight is found again.
    """
    if _level() < 0:
        return value
    return each(torch.Tensor.detach, value)


def is_negated(arguments: Sequence[Any]) -> bool:
    """Whether one of ``arguments`` is lazily negated (a conjugate's imaginary part is): its memory does not show it."""
    for value in arguments:
        if isinstance(value, torch.Tensor):
            if value.is_neg():
                return True
        elif isinstance(value, _LISTS) and is_negated(value):
            return True
    return False


def first_order(again: Again) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate ``backward`` of a kernels' autograd.Function, which serves plain first-order gradients only.

    Under ``create_graph=True`` its result has to be differentiable itself, and under vmap (``is_grads_batched``, or
    ``jacobian(vectorize=True)``) gradients are no plain memory: then the reference is differentiated in its place.

    Args:
        again: of the same arguments as ``forward``, as far as it needs them: gradients are returned in this order.
    """

    def decorate(kernels: Callable[..., Any]) -> Callable[..., Any]:
        def either(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled() or in_transform() or any(map(_is_batched, gradients)):
                found = _differentiate(*again(ctx), gradients)
                return *found, *(None,) * (len(ctx.needs_input_grad) - len(found))
            return kernels(ctx, *gradients)

        @functools.wraps(kernels)
        def backward(ctx: Any, *gradients: Any) -> Any:
            if torch.compiler.is_compiling():  # it refuses second-order gradients itself
                return kernels(ctx, *gradients)
            if torch._C._is_any_autocast_enabled():  # dtypes are those of the forward
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
            # aliases: the same tensor may come twice, or be made from another one
            own = [one.view_as(one) if isinstance(one, torch.Tensor) else one for one in arguments]
            outputs = function(*own)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(out, given) for out, given in zip(outputs, gradients) if out.requires_grad and given is not None]
        asked = {at: one for at, one in enumerate(own) if isinstance(one, torch.Tensor) and one.requires_grad}
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            list(asked.values()),
            [given for _, given in pairs],
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
    finally:
        _of_thread.differentiates = False
    by_place = dict(zip(asked, found))
    return [by_place.get(at) for at in range(len(own))]

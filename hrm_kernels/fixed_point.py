"""Recurrent updates with gradients through the last of them only."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from hrm_kernels.backends import keep_backend

__all__ = ["Gradient", "fixed_point", "gradient_steps", "warm_up"]

Gradient = Literal["one_step", "last_cycle", "full"] | int
"""Through how many of the last updates gradients flow; see :func:`hrm_kernels.fixed_point`."""

State = TypeVar("State", torch.Tensor, tuple[torch.Tensor, ...])
Cell = Callable[..., Any]


def fixed_point(
    cell: Cell | Sequence[Cell],
    state: State,
    *inputs: Any,
    steps: int,
    gradient: Gradient = "one_step",
    recompute: bool = False,
) -> State:
    """Update ``state`` by ``cell`` ``steps`` times; only the last updates carry gradients.

    Close to a fixed point ``z* = f(z*, x)``, the implicit function theorem gives the exact gradient
    ``(I - J)^-1 df/dw`` with the Jacobian ``J = df/dz``. It does not depend on the updates that led there, so none
    of them is kept. The inverse is the Neumann series ``I + J + J² + ...``. Differentiating the last update gives its
    first term (the one-step gradient), the last k updates give the first k terms. Memory does not grow with ``steps``.

    Args:
        cell: ``cell(state, *inputs) -> state``; or several cells called in turn, such as ``[L, L, H]`` for a two-level
            model: a cycle, which is repeated.
        state: a tensor or a tuple of tensors, of any shape; it is not written to.
        inputs: further arguments of every update; they get gradients too.
        steps: the number of updates of all cells together, >= 1.
        gradient: ``"one_step"``: the last update (with several cells, the shortest run of last updates that contains
            each cell); an integer k: the last k updates; ``"last_cycle"``: as many as there are cells; ``"full"``: all
            updates, which is backpropagation through time. A number above ``steps`` means all updates.
        recompute: keep only the state before the updates that carry gradients. The backward runs the updates again, by
            halves: for k updates it holds ``log2(k)`` states, as many gradients of the weights, and the activations of
            one update. This pays where activations are larger than the weights, or k is large. Each update runs
            ``1 + log2(k) / 2`` times more. Random numbers (dropout) are the same again, and so is the backend.

    Returns:
        The last state, a tensor or a tuple like ``state``. It is detached from ``state`` unless all updates carry
        gradients; in forward mode too.

    Raises:
        TypeError: ``state`` is neither a tensor nor a tuple of tensors, or a cell returns a different structure.
        ValueError: ``steps`` or ``gradient`` is not valid.

    Source: deep equilibrium models (arXiv 1909.01377), section 3; HRM (arXiv 2506.21734), section 2, "Approximate
    gradient"; on the error of the truncation, arXiv 2111.05177.
    """
    cells = [cell] if callable(cell) else list(cell) if isinstance(cell, Iterable) else []
    if not cells or not all(callable(one) for one in cells):
        raise TypeError("fixed_point: cell is not a function; expected cell(state, *inputs) -> state, or a list")
    is_tensor = isinstance(state, torch.Tensor)
    tensors: Any = (state,) if isinstance(state, torch.Tensor) else state
    if not isinstance(tensors, tuple) or not tensors or not all(isinstance(one, torch.Tensor) for one in tensors):
        kind = "an empty tuple" if state == () else type(state).__name__
        raise TypeError(f"fixed_point: state is {kind}, expected a tensor or a tuple of tensors")
    first = steps - gradient_steps(cells, steps, gradient)

    def run(start: int, stop: int, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for step in range(start, stop):
            result = cells[step % len(cells)](state[0] if is_tensor else state, *inputs)
            new = (result,) if is_tensor else result
            if not isinstance(new, tuple) or len(new) != len(state) or not isinstance(new[0], torch.Tensor):
                expected = "a tensor" if is_tensor else f"a tuple of {len(state)} tensors"
                raise TypeError(
                    f"fixed_point: the cell returned {type(result).__name__}, expected {expected} as state is"
                )
            state = new
        return state

    run_again = keep_backend(run)

    def run_by_halves(start: int, stop: int, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if stop - start == 1:
            return run_again(start, stop, *state)
        middle = (start + stop) // 2
        state = checkpoint(run_by_halves, start, middle, *state, use_reentrant=False)
        return checkpoint(run_by_halves, middle, stop, *state, use_reentrant=False)

    if first:
        with torch.no_grad():
            tensors = tuple(one.detach() for one in run(0, first, *tensors))  # of forward-mode tangents too
    if recompute and torch.is_grad_enabled():
        tensors = checkpoint(run_by_halves, first, steps, *tensors, use_reentrant=False)
    else:
        tensors = run(first, steps, *tensors)
    return tensors[0] if is_tensor else tensors  # type: ignore[return-value]


def gradient_steps(cells: Sequence[object], steps: int, gradient: Gradient) -> int:
    """How many of ``steps`` updates by ``cells`` in turn carry gradients; see :func:`hrm_kernels.fixed_point`.

    Raises:
        ValueError: ``steps`` or ``gradient`` is not valid.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"fixed_point: steps is {steps!r}, expected an integer >= 1")
    if gradient == "full":
        return steps
    if gradient == "last_cycle":
        return min(len(cells), steps)
    if gradient == "one_step":
        # by identity, as a number: torch.compile cannot trace "is" of two functions
        last_use = {id(cells[step % len(cells)]): step for step in range(max(0, steps - len(cells)), steps)}
        return steps - min(last_use.values())
    if isinstance(gradient, bool) or not isinstance(gradient, int) or gradient < 1:
        raise ValueError(
            f"fixed_point: gradient is {gradient!r}, expected 'one_step', 'last_cycle', 'full' or an integer >= 1"
        )
    return min(gradient, steps)


def warm_up(step: int, over: int, last: int, first: int = 1) -> int:
    """The number of updates with gradients at training step ``step``: from ``first`` to ``last`` in equal stages.

    Short gradients are cheap and stable while the states are far from a fixed point; longer ones are more exact later.

    Args:
        step: of the training, counted from 0.
        over: the number of training steps of the warm-up; 0 means ``last`` from the start.
        last: the number from step ``over`` on.
        first: the number at step 0; it may be larger than ``last``.

    Raises:
        ValueError: a number is too small (step and over below 0, first or last below 1).
    """
    for name, value, least in (("step", step, 0), ("over", over, 0), ("last", last, 1), ("first", first, 1)):
        if value < least:
            raise ValueError(f"warm_up: {name} is {value}, expected an integer >= {least}")
    if step >= over:
        return last
    stages = abs(last - first) + 1
    done = step * stages // over
    return first + done if last >= first else first - done

"""One call of a module by its own forward and by ours: values, gradients, and what the own one does besides."""

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from hrm_kernels.backends import BackendUnavailable
from hrm_kernels.casts import FrozenWeights

_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
_TOLERANCE_OF_FLOAT32 = 2e-5  # of float64 too: norms and softmax are often computed in float32 there
"""Largest difference relative to the largest element. float32: the order of sums; another eps, activation or scale, a
mask or an RoPE of another kind differ by 1e-3 and more."""
_ROUNDING = 16  # more is allowed where the module multiplies rounding: so many times what a rounding of its inputs does
_MOST = 0.5  # of float32 at least; in 16 bits the rounding of a large score is already a difference


ELSE = "it computes something else"


@dataclass(frozen=True)
class Outcome:
    """What a call shows.

    Attributes:
        kind: ``"same"``; ``"different"``; ``"refused"``, where our ops cannot take these arguments; ``"failed"``, where
            the own forward cannot; ``"unclear"``, where its output is 0 everywhere or not finite.
        reason: for all but the first.
    """

    kind: Literal["same", "different", "refused", "failed", "unclear"]
    reason: str = ""


def compare(
    twin: nn.Module, ours: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any], gradients: bool
) -> Outcome:
    """Run both forwards of ``twin``, a copy that nobody else uses, on copies of the arguments.

    Random number generators are left as they were, and hooks on saved tensors (those of checkpointing) see nothing.

    Args:
        gradients: compare them too, of all arguments and parameters that ask for one.

    Raises:
        BackendUnavailable: the backend that was asked for cannot serve the call.
    """
    device = next(twin.parameters()).device
    with _undisturbed(device), torch.set_grad_enabled(gradients):
        return _compare(twin, ours, (arguments, named), device)


def line(error: BaseException) -> str:
    """The first line of its message."""
    return (str(error) or "no message").splitlines()[0][:200]


def _compare(twin: nn.Module, ours: Callable[..., Any], given: Any, device: torch.device) -> Outcome:
    before, weights = copy.deepcopy(twin, {id(one): one for one in twin.parameters()}), _written(twin)
    copies, numbers = _apart(given), _generators(device)
    try:
        own = _results(twin, type(twin).forward, copies, numbers)
    except Exception as error:  # of any kind: the code is not ours
        return Outcome("failed", f"its own forward failed on it ({type(error).__name__}: {line(error)})")
    if isinstance(own, Outcome):
        return own
    what = _changed(before, twin, "") or ("a parameter" if _written(twin) != weights else None)
    if what is not None:
        return Outcome("different", f"its own forward changes {what.lstrip('.')}, which ours would not")
    if not all(_equal(one, was) for one, was in zip(tree_leaves(copies), tree_leaves(given), strict=True)):
        return Outcome("different", "its own forward writes into its arguments, which ours does not")
    try:
        got = _results(twin, ours, _apart(given), None)
    except torch.OutOfMemoryError as error:
        return Outcome("unclear", line(error))
    except (TypeError, ValueError) as error:  # what our ops say of wrong arguments
        return Outcome("refused", line(error))
    except BackendUnavailable:
        raise
    except Exception as error:
        return Outcome("different", f"ours failed ({type(error).__name__}: {line(error)})")
    assert not isinstance(got, Outcome)
    output = own["output"]
    assert output is not None
    precision = _precision(output.dtype)  # of the gradients of wider weights too
    tolerance = _TOLERANCE.get(precision, _TOLERANCE_OF_FLOAT32)
    moved: dict[str, torch.Tensor | None] | None = None
    for name, theirs in own.items():
        mine = got.get(name)
        if theirs is None or mine is None:
            if mine is not theirs:
                return Outcome("different", f"{ELSE}: {name} is there in one of the two only")
            continue
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            kinds = [f"{list(one.shape)} {one.dtype}" for one in (mine, theirs)]
            return Outcome("different", f"{ELSE}: {name} would be {kinds[0]}, its own is {kinds[1]}")
        off, allowed = _off(mine, theirs), tolerance
        if not off <= allowed:
            if moved is None:
                moved = _results(twin, type(twin).forward, _rounded(given, device), None)  # type: ignore[assignment]
            other = moved.get(name)  # type: ignore[union-attr]
            if other is not None and other.shape == theirs.shape:
                rounding = _ROUNDING * _off(other, theirs)
                allowed = max(allowed, rounding if precision in _TOLERANCE else min(rounding, _MOST))
        if not off <= allowed:
            what = f"{name} differs by {off:.1e} of its largest element, allowed {allowed:.1g}"
            return Outcome("different", f"{ELSE}: {what}")
    if output.numel() and not (output.isfinite().all() and output.any()):
        return Outcome("unclear", "its output is 0 everywhere, or not finite")
    return Outcome("same")


def _results(
    twin: nn.Module, forward: Callable[..., Any], given: Any, numbers: Any
) -> dict[str, torch.Tensor | None] | Outcome:
    """The output, and the gradients of its weighted sum; or why this can be nothing of ours.

    ``numbers``: states of the random number generators before, if they must not change.
    """
    arguments, named = given
    out = MethodType(forward, twin)(*arguments, **named)
    if not isinstance(out, torch.Tensor):
        return Outcome("different", f"its forward returns a {type(out).__name__}, and the ops return one tensor")
    if numbers is not None and not _equal_numbers(numbers, _generators(out.device)):
        mode = "training" if twin.training else "evaluation"
        return Outcome("different", f"its own forward draws random numbers in {mode} mode, as dropout does")
    results: dict[str, torch.Tensor | None] = {"output": out.detach()}
    if not torch.is_grad_enabled():
        return results
    results["a gradient"] = out.new_zeros(0) if out.requires_grad else None
    asked = {f"input {at}": one for at, one in enumerate(tree_leaves(given)) if isinstance(one, torch.Tensor)}
    asked |= dict(twin.named_parameters())
    asked = {f"the gradient of {name}": one for name, one in asked.items() if one.requires_grad}
    if not out.requires_grad or not asked:
        return results
    weight = torch.linspace(-1, 2, out.numel(), device=out.device, dtype=torch.float32).view(out.shape).to(out.dtype)
    return results | dict(
        zip(asked, torch.autograd.grad(out, list(asked.values()), weight, allow_unused=True), strict=True)
    )


def _off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference in terms of the largest element; NaN and infinities must be in the same places."""
    if not ours.numel():
        return 0.0
    a, b = (one.detach().to(torch.promote_types(one.dtype, torch.float32)) for one in (ours, theirs))
    largest = _largest(b)
    if not largest < float("inf"):
        finite = b.isfinite()
        if not torch.equal(a.isfinite(), finite):
            return float("inf")
        a, b = a.where(finite, 0), b.where(finite, 0)
        largest = _largest(b)
    return _largest(a - b) / max(largest, 1e-30)


def _largest(one: torch.Tensor) -> float:
    return torch.linalg.vector_norm(one, float("inf")).item()


def _precision(dtype: torch.dtype) -> torch.dtype:
    """float32 products are rounded more where somebody has asked torch for that."""
    reduced = dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return torch.bfloat16 if reduced else dtype


def _rounded(given: Any, device: torch.device) -> Any:
    """The arguments with each number off by a rounding."""
    generator = torch.Generator(device).manual_seed(2)

    def nudged(one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or not one.is_floating_point():
            return one
        signs = torch.randint(0, 2, one.shape, generator=generator, device=device).to(one.device) * 2 - 1
        eps = torch.finfo(_precision(one.dtype)).eps
        return (one.detach() * (1 + eps * signs)).to(one.dtype).requires_grad_(one.requires_grad)

    return tree_map(nudged, given)


def _apart(given: Any) -> Any:
    return tree_map(
        lambda one: one.detach().clone().requires_grad_(one.requires_grad) if isinstance(one, torch.Tensor) else one,
        given,
    )


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one),
            FrozenWeights(),  # its own: one around would keep what was made of the copy's weights
        ):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(legacy)


def _generators(device: torch.device) -> list[Any]:
    """What the random number generators will draw next."""
    numpy = sys.modules.get("numpy")
    states: list[Any] = [torch.get_rng_state(), random.getstate()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    if numpy is not None:
        legacy = numpy.random.get_state()
        states += [torch.from_numpy(legacy[1]), legacy[2:]]
    return states


def _equal_numbers(before: list[Any], after: list[Any]) -> bool:
    return all(_equal(a, b) for a, b in zip(before, after))


def _written(module: nn.Module) -> list[tuple[Any, ...]]:
    """What differs where a parameter has been written, through ``.data`` too."""
    states = []
    for one in module.parameters():
        version = None if one.is_inference() else one._version
        states.append((id(one), version, repr(one.detach().sum().item())))
    return states


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a is b:
            return True
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
    try:
        return bool(a is b or a == b)
    except Exception:  # such as that of an array with several elements
        return True  # nothing can be said of it


def _changed(before: Any, after: Any, name: str, seen: set[int] | None = None) -> str | None:
    """The name of the first thing in an object that is not as in the copy made before, or None."""
    seen = set() if seen is None else seen
    if before is after or id(after) in seen:
        return None
    if type(before) is not type(after):
        return name
    if isinstance(after, torch.Tensor):
        return None if _equal(before, after) else name
    seen.add(id(after))
    if isinstance(after, dict):
        pairs = [(f"{name}.{key}", before.get(key), value) for key, value in after.items()]
        if len(before) != len(after):
            added = set(after) - set(before) or set(before) - set(after)
            return f"{name}.{sorted(map(str, added))[0]}" if added else name
    elif isinstance(after, list | tuple):
        pairs = [(f"{name}.{at}", *both) for at, both in enumerate(zip(before, after))]
        if len(before) != len(after):
            return name
    elif isinstance(after, nn.Module):
        skipped = ("_modules", "_parameters", "_buffers")
        pairs = [(f"{name}.{key}", before.__dict__.get(key), value) for key, value in after.__dict__.items()]
        pairs = [pair for pair in pairs if pair[0].rpartition(".")[2] not in skipped]
        pairs += [(name, before.__dict__[key], after.__dict__[key]) for key in skipped]
        if len(before.__dict__) != len(after.__dict__):
            return f"{name}.{sorted(set(after.__dict__) ^ set(before.__dict__))[0]}"
    elif hasattr(after, "__dict__"):
        pairs = [(name, vars(before), vars(after))]
    else:
        unknown = type(after).__eq__ is object.__eq__  # a copy is never equal to it
        return None if unknown or _equal(before, after) else name
    return next((what for one, was, now in pairs if (what := _changed(was, now, one, seen)) is not None), None)

"""Compare one call of a module's original forward with the same call on the ops."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from hrm_kernels.backends import BackendUnavailable
from hrm_kernels.integrations.calls import Call
from hrm_kernels.integrations.effects import (
    equal,
    first_change,
    generator_states,
    isolated,
    parameter_fingerprint,
    same_states,
)

_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
_TOLERANCE_OF_FLOAT32 = 2e-5  # of float64 too, because norms and softmax often run in float32 there
"""Largest difference relative to the largest element. float32: the order of sums; another eps, activation or scale, a
mask or another kind of RoPE differ by 1e-3 and more."""
_ROUNDING = 16  # where a module amplifies rounding, allow this many times the effect of rounding its inputs
_MOST = 0.5  # upper limit of that allowance in float32; in 16 bits, rounding of a large score may exceed it

Forward = Callable[..., Any]
Results = dict[str, torch.Tensor | None]
"""The output, and each gradient by a name for messages."""


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison.

    Attributes:
        kind: ``"same"``; ``"different"``: output or gradients differ; ``"incompatible"``: the original forward does
            something that the ops do not, such as a side effect; ``"refused"``: the ops do not take these arguments;
            ``"failed"``: the original forward raises; ``"unclear"``: its output is 0 everywhere or not finite.
        reason: for all kinds but ``"same"``.
    """

    kind: Literal["same", "different", "incompatible", "refused", "failed", "unclear"]
    reason: str = ""


def compare(module: nn.Module, op_forward: Forward, call: Call, gradients: bool) -> Outcome:
    """Run both forwards of ``module``, a copy that nobody else uses, on copies of the arguments.

    Random number generators keep their states, and hooks on saved tensors (those of checkpointing) are not called.

    Args:
        gradients: also compare gradients of all arguments and parameters that require them.

    Raises:
        BackendUnavailable: the requested backend cannot serve the call.
    """
    device = next(leaf.device for leaf in tree_leaves(call) if isinstance(leaf, torch.Tensor))
    with isolated(device), torch.set_grad_enabled(gradients):
        original = _original_results(module, call, device)
        if isinstance(original, Outcome):
            return original
        computed = _op_results(module, op_forward, call)
        if isinstance(computed, Outcome):
            return computed
        difference = _difference(module, original, computed, call, device)
        if difference is not None:
            return Outcome("different", f"it computes something else: {difference}")
        output = original["output"]
        assert output is not None
        if output.numel() and not (output.isfinite().all() and output.any()):
            return Outcome("unclear", "its output is 0 everywhere, or not finite")
        return Outcome("same")


def first_line(error: BaseException) -> str:
    """The first line of the error's message."""
    return (str(error) or "no message").splitlines()[0][:200]


def _original_results(module: nn.Module, call: Call, device: torch.device) -> Results | Outcome:
    """Run the original forward and look for side effects."""
    before = copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})
    fingerprint = parameter_fingerprint(module)
    copied, states = call.copied(), generator_states(device)
    try:
        results = _results(module, type(module).forward, copied, states)
    except Exception as error:  # of any type: it runs code of other projects
        return Outcome("failed", f"its forward failed ({type(error).__name__}: {first_line(error)})")
    if isinstance(results, Outcome):
        return results
    changed = first_change(before, module) or ("a parameter" if parameter_fingerprint(module) != fingerprint else None)
    if changed is not None:
        return Outcome("incompatible", f"its forward changes {changed.lstrip('.')}; the ops would not")
    if not all(equal(after, leaf) for after, leaf in zip(tree_leaves(copied), tree_leaves(call), strict=True)):
        return Outcome("incompatible", "its forward writes into its arguments; the ops do not")
    return results


def _op_results(module: nn.Module, op_forward: Forward, call: Call) -> Results | Outcome:
    try:
        return _results(module, op_forward, call.copied(), None)
    except torch.OutOfMemoryError as error:
        return Outcome("unclear", first_line(error))
    except (TypeError, ValueError) as error:  # the ops' checks of arguments
        return Outcome("refused", first_line(error))
    except BackendUnavailable:
        raise
    except Exception as error:
        return Outcome("incompatible", f"the op failed ({type(error).__name__}: {first_line(error)})")


def _results(module: nn.Module, forward: Forward, call: Call, states: list[Any] | None) -> Results | Outcome:
    """Compute the output and the gradients of its weighted sum.

    Args:
        states: states of the random number generators, where the forward must not change them.
    """
    output = MethodType(forward, module)(*call.arguments, **call.keywords)
    if not isinstance(output, torch.Tensor):
        return Outcome("incompatible", f"its forward returns a {type(output).__name__}; the ops return one tensor")
    if states is not None and not same_states(states, generator_states(output.device)):
        mode = "training" if module.training else "evaluation"
        return Outcome("incompatible", f"its forward draws random numbers in {mode} mode, as dropout does")
    results: Results = {"output": output.detach()}
    if not torch.is_grad_enabled():
        return results
    results["a gradient"] = output.new_zeros(0) if output.requires_grad else None
    leaves = {f"input {index}": leaf for index, leaf in enumerate(tree_leaves(call)) if isinstance(leaf, torch.Tensor)}
    leaves |= dict(module.named_parameters())
    leaves = {f"the gradient of {name}": leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not output.requires_grad or not leaves:
        return results
    weight = torch.linspace(-1, 2, output.numel(), device=output.device, dtype=torch.float32)
    gradients = torch.autograd.grad(
        output, list(leaves.values()), weight.view(output.shape).to(output.dtype), allow_unused=True
    )
    return results | dict(zip(leaves, gradients, strict=True))


def _difference(
    module: nn.Module, original: Results, computed: Results, call: Call, device: torch.device
) -> str | None:
    """Describe the first result that differs by more than rounding explains, or None."""
    output = original["output"]
    assert output is not None
    precision = _precision(output.dtype)  # of the gradients of wider weights too
    tolerance = _TOLERANCE.get(precision, _TOLERANCE_OF_FLOAT32)
    perturbed: Results | None = None
    for name, expected in original.items():
        actual = computed.get(name)
        if expected is None or actual is None:
            if actual is not expected:
                return f"only one of the two has {name}"
            continue
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            kinds = [f"{list(tensor.shape)} {tensor.dtype}" for tensor in (actual, expected)]
            return f"{name} would be {kinds[0]}, expected {kinds[1]}"
        error, allowed = _relative_error(actual, expected), tolerance
        if not error <= allowed:
            if perturbed is None:
                perturbed = _results(module, type(module).forward, _perturbed(call, device), None)  # type: ignore[assignment]
            other = perturbed.get(name)  # type: ignore[union-attr]
            if other is not None and other.shape == expected.shape:
                rounding = _ROUNDING * _relative_error(other, expected)
                allowed = max(allowed, rounding if precision in _TOLERANCE else min(rounding, _MOST))
        if not error <= allowed:
            return f"{name} differs by {error:.1e} of its largest element, allowed {allowed:.1g}"
    return None


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest element; NaN and infinities must be at the same places."""
    if not actual.numel():
        return 0.0
    a, b = (tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (actual, expected))
    largest = _largest(b)
    if not largest < float("inf"):
        finite = b.isfinite()
        if not torch.equal(a.isfinite(), finite):
            return float("inf")
        a, b = a.where(finite, 0), b.where(finite, 0)
        largest = _largest(b)
    return _largest(a - b) / max(largest, 1e-30)


def _largest(tensor: torch.Tensor) -> float:
    return torch.linalg.vector_norm(tensor, float("inf")).item()


def _precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype whose rounding applies: torch may be set to compute float32 products in lower precision."""
    reduced = dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return torch.bfloat16 if reduced else dtype


def _perturbed(call: Call, device: torch.device) -> Call:
    """The call with each number changed by one rounding."""
    generator = torch.Generator(device).manual_seed(2)

    def perturb(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        signs = torch.randint(0, 2, leaf.shape, generator=generator, device=device).to(leaf.device) * 2 - 1
        eps = torch.finfo(_precision(leaf.dtype)).eps
        return (leaf.detach() * (1 + eps * signs)).to(leaf.dtype).requires_grad_(leaf.requires_grad)

    return tree_map(perturb, call)

"""Whether our forward computes what a module's own does: both run on a small copy of it, values and gradients."""

import copy
from types import MethodType
from typing import Any

import torch
from torch import nn

from hrm_kernels.backends import BackendUnavailable
from hrm_kernels.integrations.forward import OPS, forward_of
from hrm_kernels.integrations.structure import Part
from hrm_kernels.nn import rope_tables

_ROWS, _POSITIONS = 2, 5
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}
"""Largest difference relative to the largest element. float32: the order of sums; another eps, activation or scale, a
mask or an RoPE of another kind differ by 1e-3 and more. bfloat16 (its epsilon is 8e-3) only where a module refuses
float32."""


def difference(module: nn.Module, part: Part, backend: str | None) -> str | None:
    """None where our forward of ``module`` agrees with its own, else what is wrong.

    The probe runs on a copy whose weights are drawn anew (those of a new model may be 0 and hide a difference), in
    training and in evaluation mode, on states of usual size and on small ones, where the eps of a norm shows.
    """
    device = next(module.parameters()).device
    if device.type == "meta":
        return "its weights are on the meta device, where nothing can be tried; patch after they are in memory"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)
        twin = copy.deepcopy(module).float()
        for parameter in twin.parameters():
            parameter.requires_grad_()
            with torch.no_grad():
                parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0)
        for dtype in (torch.float32, torch.bfloat16):
            reason, refused = _compare(twin, part, backend, dtype, device)
            if not refused:
                break
        return reason


def _compare(
    twin: nn.Module, part: Part, backend: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[str | None, bool]:
    """The difference; and whether the module's own forward does not work at all in this dtype."""
    plain = any(type(one) is nn.Linear for one in twin.modules())
    if plain:
        twin.to(dtype)
    tables = (False, True) if part.signature.tables is not None else (False,)
    worked = False
    reason = ""
    for training in (False, True):
        twin.train(training)
        for scale in (1.0, 1e-2):
            for with_tables in tables:
                arguments = _arguments(twin, part, scale, with_tables, dtype, device)
                try:
                    want = _run(twin, type(twin).forward, arguments)
                except Exception as error:  # of any kind: the code is not ours
                    reason = f"its own forward failed on a probe ({type(error).__name__}: {_line(error)})"
                    continue
                worked = True
                try:
                    got = _run(twin, forward_of(part, backend), arguments)
                except (TypeError, ValueError, BackendUnavailable) as error:  # what our ops say of wrong arguments
                    return f"{OPS[part.kind]} cannot compute it: {_line(error)}", False
                for (name, ours), theirs in zip(got.items(), want.values(), strict=True):
                    if ours is None or theirs is None:
                        if ours is not theirs:
                            return f"{name} has a gradient in one of the two alone", False
                        continue
                    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                        kinds = [f"{list(one.shape)} {one.dtype}" for one in (ours, theirs)]
                        return f"{name} would be {kinds[0]}, its own is {kinds[1]}", False
                    off = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-30)
                    if not off <= _TOLERANCE[dtype]:
                        mode = "training" if training else "evaluation"
                        rope = "" if part.signature.tables is None else f", {'with' if with_tables else 'without'} RoPE"
                        return (
                            f"it computes something else: {name} differs by {off:.1e} of its largest element "
                            f"({mode} mode{rope}, states of size {scale:g}; allowed {_TOLERANCE[dtype]:g})"
                        ), False
    return (None, False) if worked else (reason, True)


def _arguments(
    twin: nn.Module, part: Part, scale: float, with_tables: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    positions, width = _POSITIONS, _width(twin, part)
    if part.kind.startswith("mixing"):
        block, inner = (twin.layers[0], part.inner[0]) if part.kind == "mixing_module" else (twin, part)  # type: ignore[index]
        positions = getattr(getattr(block, inner.names[0]), inner.inner[0].names[1]).weight.shape[0]
    generator = torch.Generator().manual_seed(1)

    def state() -> torch.Tensor:
        drawn = scale * torch.randn(_ROWS, positions, width, generator=generator)
        return drawn.to(device, dtype).requires_grad_()

    arguments: dict[str, Any] = {part.signature.hidden: state()}
    if part.signature.injection is not None:
        arguments[part.signature.injection] = state()
    names = part.signature.tables
    if with_tables:
        cos, sin = rope_tables(positions, _head_dim(twin, part), device=device)
        arguments |= dict(zip(names, (cos, sin))) if isinstance(names, tuple) else {str(names): (cos, sin)}
    elif isinstance(names, tuple):
        arguments |= dict.fromkeys(names)
    elif names is not None:
        arguments[names] = None
    return arguments


def _width(twin: nn.Module, part: Part) -> int:
    if part.kind == "linear":
        return twin.weight.shape[1]  # type: ignore[union-attr, return-value, index]
    if part.kind in ("swiglu", "attention"):
        return getattr(twin, part.names[0]).weight.shape[1]
    if part.kind in ("module", "mixing_module"):
        return _width(twin.layers[0], part.inner[0])  # type: ignore[index, arg-type]
    return _width(getattr(twin, part.names[-1]), part.inner[-1])


def _head_dim(twin: nn.Module, part: Part) -> int:
    if part.kind == "attention":
        return getattr(twin, part.names[1]).weight.shape[1] // part.num_heads
    if part.kind == "module":
        return _head_dim(twin.layers[0], part.inner[0])  # type: ignore[index, arg-type]
    if part.kind == "block":
        return _head_dim(getattr(twin, part.names[0]), part.inner[0])
    return 2  # tables are given to it, and not used


def _run(twin: nn.Module, forward: Any, arguments: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    """The output and the gradients of its weighted sum."""
    out = MethodType(forward, twin)(**arguments)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"it returned {type(out).__name__}, expected a tensor")
    named = {
        name: value for name, value in arguments.items() if isinstance(value, torch.Tensor) and value.requires_grad
    }
    named |= dict(twin.named_parameters())
    weight = torch.linspace(-1, 2, out.numel(), device=out.device).view_as(out).to(out.dtype)
    gradients = torch.autograd.grad(out, list(named.values()), weight, allow_unused=True)
    results: dict[str, torch.Tensor | None] = {"output": out.detach()}
    return results | {f"the gradient of {name}": one for name, one in zip(named, gradients)}


def _line(error: Exception) -> str:
    return (str(error) or "no message").splitlines()[0][:200]

"""Whether our forward computes what a module's own does: both run on a small copy of it, in many ways."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hrm_kernels.backends import BackendUnavailable
from hrm_kernels.integrations.compare import ELSE, Outcome, compare, line
from hrm_kernels.integrations.forward import OPS, ours_of
from hrm_kernels.integrations.near_misses import suspects
from hrm_kernels.integrations.structure import Part
from hrm_kernels.nn import rope_tables


@dataclass(frozen=True)
class _Try:
    """One way to call a module.

    Attributes:
        rows, positions: of the state; a block that mixes positions has its own number of them.
        states: their size. Small ones show the eps of a norm, large ones clipping.
        weights: the factor of the usual size. Large ones show clipping behind a norm, and caps on scores.
        padded: the last positions are 0, of which some modules make a mask.
        gradients: compared too.
    """

    rows: int = 2
    positions: int = 5
    states: float = 1.0
    weights: float = 1.0
    padded: bool = False
    training: bool = False
    gradients: bool = False


_TRIES = (
    *(_Try(states=size, training=mode, gradients=True) for mode in (False, True) for size in (1.0, 1e-2)),
    _Try(rows=1, positions=1),
    _Try(rows=3, positions=33, training=True),
    _Try(positions=17, padded=True),
    *(_Try(positions=17, states=size) for size in (1e-4, 30.0, 1e3, 1e6)),
    *(_Try(positions=17, weights=size) for size in (4.0, 16.0)),
    _Try(rows=1, positions=300),
)
"""The window, cap or scale that begins beyond is found by the first call that is longer or larger in shape."""


def difference(module: nn.Module, part: Part, backend: str | None) -> str | None:
    """None where our forward of ``module`` agrees with its own, else what is wrong.

    The probe runs on a copy whose weights are drawn anew: those of a new model may be 0 and hide a difference.
    """
    device = next(module.parameters()).device
    if device.type == "meta":
        return "its weights are on the meta device, where nothing can be tried; patch after they are in memory"
    with torch.inference_mode(False):
        return _difference(module, part, backend, device)


def _difference(module: nn.Module, part: Part, backend: str | None, device: torch.device) -> str | None:
    try:
        twin = copy.deepcopy(module).float()
    except Exception as error:  # of any kind: the code is not ours
        return f"it cannot be copied, and so not tried ({type(error).__name__}: {line(error)})"
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.requires_grad_()
            size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.normal_(std=size, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        reason, refused = _compare(twin, part, backend, dtype, device)
        if not refused:
            break
    return reason


def _compare(
    twin: nn.Module, part: Part, backend: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[str | None, bool]:
    """The difference; and whether the module's own forward does not work at all in this dtype."""
    if any(type(one) is nn.Linear for one in twin.modules()):
        twin.to(dtype)
    layouts = [None, 2, 3] if part.signature.tables is not None else [None]
    worked: list[int | None] = []
    reason = ""
    for way in _TRIES:
        twin.train(way.training)
        _scale(twin, way.weights)
        if not way.gradients:
            if not worked:
                break
            layouts = worked[-1:]  # with RoPE, if it can
        for layout in layouts:
            if layout == 3 and 2 in worked:
                continue
            arguments = _arguments(twin, part, way, layout, dtype, device)
            try:
                outcome = compare(twin, ours_of(part, backend), (), arguments, way.gradients)
            except BackendUnavailable as error:
                outcome = Outcome("refused", line(error))
            if outcome.kind == "same":
                worked += [] if layout in worked else [layout]
            elif outcome.kind in ("failed", "unclear"):
                reason = f"{outcome.reason}{_of(way, part, arguments, layout)}"
            elif outcome.kind == "refused":
                if layout == 3:
                    return "it takes RoPE tables as [1, S, d], and rope_attention as [S, d]", False
                return f"{OPS[part.kind]} cannot compute it: {outcome.reason}", False
            else:
                if not outcome.reason.startswith(ELSE):
                    return outcome.reason, False
                return outcome.reason + _of(way, part, arguments, layout) + suspects(twin), False
        _scale(twin, 1 / way.weights)
    return (None, False) if worked else (reason, True)


def _of(way: _Try, part: Part, arguments: dict[str, Any], layout: int | None) -> str:
    mode = "training mode" if way.training else "evaluation mode"
    rope = "" if part.signature.tables is None else f", {'without' if layout is None else 'with'} RoPE"
    weights = f", weights x {way.weights:g}" if way.weights != 1 else ""
    padded = ", the last of them 0" if way.padded else ""
    positions = arguments[part.signature.hidden].shape[1]
    return f" ({mode}{rope}, states of size {way.states:g}{weights}, {positions} positions{padded})"


def _scale(twin: nn.Module, factor: float) -> None:
    if factor != 1:
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(factor)


def _arguments(
    twin: nn.Module, part: Part, way: _Try, layout: int | None, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    positions, width = way.positions, _width(twin, part)
    if part.kind.startswith("mixing"):
        block, inner = (twin.layers[0], part.inner[0]) if part.kind == "mixing_module" else (twin, part)  # type: ignore[index]
        positions = getattr(getattr(block, inner.names[0]), inner.inner[0].names[1]).weight.shape[0]
    generator = torch.Generator().manual_seed(1)

    def state() -> torch.Tensor:
        drawn = way.states * torch.randn(
            way.rows, positions, width, generator=generator, device="cpu", dtype=torch.float32
        )
        if way.padded:
            drawn[-1:, -(positions // 3) :] = 0
        return drawn.to(device, dtype).requires_grad_(way.gradients)

    signature = part.signature
    arguments: dict[str, Any] = dict.fromkeys(signature.required)  # None in the place of those that nothing is known of
    arguments[signature.hidden] = state()
    if signature.injection is not None:
        arguments[signature.injection] = state()
    names = signature.tables
    if layout is not None:
        tables = rope_tables(positions, _head_dim(twin, part), device=device)
        cos, sin = (one if layout == 2 else one[None] for one in tables)
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

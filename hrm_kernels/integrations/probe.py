"""Try whether the ops compute the results of a module: run both forwards on a copy in many settings."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hrm_kernels.backends import BackendUnavailable
from hrm_kernels.integrations.calls import Call
from hrm_kernels.integrations.compare import Outcome, compare, first_line
from hrm_kernels.integrations.forward import OPS, op_forward
from hrm_kernels.integrations.near_misses import suspects
from hrm_kernels.integrations.replacement import STATE
from hrm_kernels.integrations.structure import Part
from hrm_kernels.nn import rope_tables


@dataclass(frozen=True)
class _Trial:
    """Settings of one call.

    Attributes:
        rows, positions: shape of the state; a block that mixes positions fixes their number.
        states: scale of the states. Small states show the eps of a norm, large ones clipping.
        weights: factor on the usual scale of weights. Large weights show clipping after a norm and caps on scores.
        padded: set the last positions to 0, which some modules turn into a mask.
        gradients: compare gradients too.
    """

    rows: int = 2
    positions: int = 5
    states: float = 1.0
    weights: float = 1.0
    padded: bool = False
    training: bool = False
    gradients: bool = False


_TRIALS = (
    *(_Trial(states=size, training=mode, gradients=True) for mode in (False, True) for size in (1.0, 1e-2)),
    _Trial(rows=1, positions=1),
    _Trial(rows=3, positions=33, training=True),
    _Trial(positions=17, padded=True),
    *(_Trial(positions=17, states=size) for size in (1e-4, 30.0, 1e3, 1e6)),
    *(_Trial(positions=17, weights=size) for size in (4.0, 16.0)),
    _Trial(rows=1, positions=300),
)
"""A window, cap or scale beyond these sizes shows in the first call of a larger shape."""


_WIDTH_OF_ANY = 64  # of states for a norm without weight, which takes any

_PLAIN = (bool, int, float, str, bytes, tuple, frozenset, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = {*vars(nn.Module()), "forward"} - {"training"}


@dataclass
class Probe:
    """The trials of one model.

    Attributes:
        backend: the requested one.
        device: of modules without parameters.
        verdicts: results by module and part. Layers of a model are alike, so one of them is tried.
    """

    backend: str | None
    device: torch.device
    verdicts: list[tuple[nn.Module, Part, str | None]] = field(default_factory=list)

    def difference(self, module: nn.Module, part: Part) -> str | None:
        """Return None where the ops agree with the original forward of ``module``, else describe the difference.

        The copy has new random weights, because the weights of a new model may be 0 and hide a difference.
        """
        device = next((parameter.device for parameter in module.parameters()), self.device)
        if device.type == "meta":
            return "its weights are on the meta device and have no values; load them into memory, then patch"
        for tried, its_part, verdict in self.verdicts:
            if its_part == part and _alike(tried, module):
                return verdict
        with torch.inference_mode(False):
            verdict = _difference(module, part, self.backend, device)
        self.verdicts.append((module, part, verdict))
        return verdict


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules differ in nothing but the values of their parameters; False where that is not sure."""
    if type(one) is not type(other) or one._modules.keys() != other._modules.keys() or one._buffers or other._buffers:
        return False
    shapes, its_shapes = (
        [(name, value if value is None else (value.shape, value.dtype, value.device)) for name, value in owner]
        for owner in (one._parameters.items(), other._parameters.items())
    )
    if shapes != its_shapes:
        return False
    attributes, its_attributes = (
        {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE and name != STATE}
        for module in (one, other)
    )
    if attributes.keys() != its_attributes.keys():
        return False
    for name, value in attributes.items():
        its_value = its_attributes[name]
        if value is not its_value and not (
            isinstance(value, _PLAIN) and isinstance(its_value, _PLAIN) and value == its_value
        ):
            return False
    pairs = zip(one._modules.values(), other._modules.values())
    return all(a is b or (a is not None and b is not None and _alike(a, b)) for a, b in pairs)


def _difference(module: nn.Module, part: Part, backend: str | None, device: torch.device) -> str | None:
    try:
        probe = copy.deepcopy(module).float()
    except Exception as error:  # of any type: it runs code of other projects
        return f"it cannot be copied, so it cannot be compared ({type(error).__name__}: {first_line(error)})"
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.requires_grad_()
            size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.normal_(std=size, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        reason, refused = _compare(probe, part, backend, dtype, device)
        if not refused:
            break
    return reason


def _compare(
    probe: nn.Module, part: Part, backend: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[str | None, bool]:
    """Return the difference, and whether the original forward works in no setting of this dtype."""
    if any(type(inner) is nn.Linear for inner in probe.modules()):
        probe.to(dtype)
    layouts = [None, 2, 3] if part.signature.tables is not None else [None]
    worked: list[int | None] = []
    reason = ""
    for trial in _TRIALS:
        probe.train(trial.training)
        _scale(probe, trial.weights)
        if not trial.gradients:
            if not worked:
                break
            layouts = worked[-1:]  # with RoPE if the module takes it
        for layout in layouts:
            if layout == 3 and 2 in worked:
                continue
            arguments = _arguments(probe, part, trial, layout, dtype, device)
            try:
                outcome = compare(probe, op_forward(part, backend), Call((), arguments), trial.gradients)
            except BackendUnavailable as error:
                outcome = Outcome("refused", first_line(error))
            if outcome.kind == "same":
                worked += [] if layout in worked else [layout]
            elif outcome.kind in ("failed", "unclear"):
                reason = f"{outcome.reason}{_settings(trial, part, arguments, layout)}"
            elif outcome.kind == "refused":
                if layout == 3:
                    return "it takes RoPE tables of shape [1, S, d], but rope_attention takes [S, d]", False
                return f"{OPS[part.kind]} cannot compute it: {outcome.reason}", False
            elif outcome.kind == "incompatible":
                return outcome.reason, False
            else:
                return outcome.reason + _settings(trial, part, arguments, layout) + suspects(probe), False
        _scale(probe, 1 / trial.weights)
    return (None, False) if worked else (reason, True)


def _settings(trial: _Trial, part: Part, arguments: dict[str, Any], layout: int | None) -> str:
    mode = "training mode" if trial.training else "evaluation mode"
    rope = "" if part.signature.tables is None else f", {'without' if layout is None else 'with'} RoPE"
    weights = f", weights x {trial.weights:g}" if trial.weights != 1 else ""
    padded = ", the last ones 0" if trial.padded else ""
    positions = arguments[part.signature.hidden].shape[1]
    return f" ({mode}{rope}, states of size {trial.states:g}{weights}, {positions} positions{padded})"


def _scale(probe: nn.Module, factor: float) -> None:
    if factor != 1:
        with torch.no_grad():
            for parameter in probe.parameters():
                parameter.mul_(factor)


def _arguments(
    probe: nn.Module, part: Part, trial: _Trial, layout: int | None, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    positions, width = trial.positions, _width(probe, part)
    if part.kind.startswith("mixing"):
        block, inner = (probe.layers[0], part.inner[0]) if part.kind == "mixing_module" else (probe, part)  # type: ignore[index]
        positions = getattr(getattr(block, inner.names[0]), inner.inner[0].names[1]).weight.shape[0]
    generator = torch.Generator().manual_seed(1)

    def state() -> torch.Tensor:
        drawn = trial.states * torch.randn(
            trial.rows, positions, width, generator=generator, device="cpu", dtype=torch.float32
        )
        if trial.padded:
            drawn[-1:, -(positions // 3) :] = 0
        return drawn.to(device, dtype).requires_grad_(trial.gradients)

    signature = part.signature
    arguments: dict[str, Any] = dict.fromkeys(signature.required)  # None for unknown arguments
    arguments[signature.hidden] = state()
    if signature.injection is not None:
        arguments[signature.injection] = state()
    names = signature.tables
    if layout is not None:
        tables = rope_tables(positions, _head_dim(probe, part), device=device)
        cos, sin = (table if layout == 2 else table[None] for table in tables)
        arguments |= dict(zip(names, (cos, sin))) if isinstance(names, tuple) else {str(names): (cos, sin)}
    elif isinstance(names, tuple):
        arguments |= dict.fromkeys(names)
    elif names is not None:
        arguments[names] = None
    return arguments


def _width(probe: nn.Module, part: Part) -> int:
    if part.kind == "linear":
        return probe.weight.shape[1]  # type: ignore[union-attr, return-value, index]
    if part.kind == "norm":
        weight = probe._parameters.get("weight")
        return _WIDTH_OF_ANY if weight is None else len(weight)
    if part.kind in ("swiglu", "conv_swiglu", "attention"):
        return getattr(probe, part.names[0]).weight.shape[1]
    if part.kind in ("module", "mixing_module"):
        return _width(probe.layers[0], part.inner[0])  # type: ignore[index, arg-type]
    return _width(getattr(probe, part.names[-1]), part.inner[-1])


def _head_dim(probe: nn.Module, part: Part) -> int:
    if part.kind == "attention":
        return getattr(probe, part.names[1]).weight.shape[1] // part.num_heads
    if part.kind == "module":
        return _head_dim(probe.layers[0], part.inner[0])  # type: ignore[index, arg-type]
    if part.kind in ("block", "conv_block"):
        return _head_dim(getattr(probe, part.names[0]), part.inner[0])
    return 2  # mixing parts ignore the tables

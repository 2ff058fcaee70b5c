"""The forward that replaces a module's original one, and the check of its first calls.

The probe cannot try everything: attention may have a window longer than any length it tries. So the first call of each
kind (shapes, dtypes, device, modes, optional arguments) runs both forwards on a copy of the module. Where they differ,
the module gets its original forward back for good. Later calls of that kind only check that the module is unchanged.
"""

import copy
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hrm_kernels.backends import BackendUnavailable
from hrm_kernels.integrations.calls import Call, Inputs
from hrm_kernels.integrations.compare import compare, first_line
from hrm_kernels.integrations.forward import BY_ROW, can_serve, op_forward, pays, run
from hrm_kernels.integrations.near_misses import suspects
from hrm_kernels.integrations.projections import product
from hrm_kernels.integrations.snapshot import HOOKS, Snapshot, is_fitting_dtype
from hrm_kernels.integrations.structure import Part

STATE = "_hrm_kernels_patch"
"""The attribute of a patched module that holds what patch knows of it."""
_DIFFERED = "_hrm_kernels_differed"  # the reason why a module has its original forward back
_MAX_CHANGES = 8  # changes of a module's attributes in consecutive calls before it gets its original forward back


@dataclass
class _Patched:
    """State of a patched module, in its ``__dict__``; copies of the module are compared again.

    Attributes:
        name: the module's name in the model, for messages.
        types: types of the inner modules.
        inside: attributes of the inner modules.
        snapshots: by the modes (training or evaluation) of the inner modules.
        changes: how many consecutive comparisons were due to changes in the module.
    """

    part: Part
    backend: str | None
    name: str
    types: tuple[type, ...]
    inside: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[tuple[bool, ...], Snapshot] = field(default_factory=dict)
    changes: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"inside": [], "snapshots": {}, "changes": 0}


def replace(module: nn.Module, part: Part, backend: str | None, name: str) -> None:
    """Let the ops compute ``module``."""
    types = tuple(type(inner) for inner in module.modules())
    module.__dict__[STATE] = _Patched(part, backend, name, types)
    module.__dict__["forward"] = MethodType(_forward_of(part, backend, types), module)


def replace_linear(module: nn.Linear, part: Part) -> None:
    """Let the CPU library compute an ``nn.Linear`` in bfloat16. Its forward is known, so nothing is compared."""
    module.__dict__[STATE] = part
    module.__dict__["forward"] = MethodType(_linear_forward, module)


def _linear_forward(self: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    weight, bias = self.weight, self.bias
    is_plain = type(input) is torch.Tensor and type(weight) is nn.Parameter and weight.dtype is torch.bfloat16
    return product(input, weight, bias) if is_plain else F.linear(input, weight, bias)


def restore(module: nn.Module) -> bool:
    """Give ``module`` its original forward back and forget its comparisons. Returns whether it was replaced."""
    module.__dict__.pop(_DIFFERED, None)
    replaced = STATE in module.__dict__
    if replaced:
        module.__dict__.pop("forward", None)
        module.__dict__.pop(STATE, None)
    return replaced


def is_replaced(module: nn.Module) -> bool:
    forward = getattr(module.__dict__.get("forward"), "__func__", None)
    return forward is _linear_forward or hasattr(forward, "hrm_kernels_part")


def keep_reason(module: nn.Module) -> str | None:
    """Return why ``module`` must stay unchanged: an earlier call differed, or its forward or hooks are replaced."""
    if _DIFFERED in module.__dict__:
        return f"an earlier call showed: {module.__dict__[_DIFFERED]}"
    for inner_name, inner in module.named_modules():
        place = f"{inner_name} inside it" if inner_name else "it"
        if any(getattr(inner, hooks) for hooks in HOOKS):
            return f"{place} has hooks, which the ops would not call; remove them and patch again"
        forward = inner.__dict__.get("forward")
        if forward is not None and getattr(forward, "__func__", None) is not type(inner).forward:
            return f"other code has replaced the forward of {place}"
    return None


def _forward_of(part: Part, backend: str | None, types: tuple[type, ...]) -> Callable[..., Any]:
    state_first = part.signature.names[:1] == (part.signature.hidden,)

    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        if backend is None and state_first and arguments and type(arguments[0]) is torch.Tensor:
            if not pays(part, arguments[0]):  # at once: the checks below take as long as a small call itself
                return type(self).forward(self, *arguments, **keywords)
        inputs = part.signature.bind(arguments, keywords)
        if inputs is None or not can_serve(part, inputs) or (backend is None and not pays(part, inputs.state)):
            use_ops = False
        elif torch.compiler.is_compiling():
            use_ops = _is_as_patched(self, types, inputs[0].dtype)
        else:
            use_ops = _agrees(self, arguments, keywords, inputs)
        if use_ops:
            return run(self, part, backend, inputs)  # type: ignore[arg-type]
        return type(self).forward(self, *arguments, **keywords)

    forward.hrm_kernels_part = part  # type: ignore[attr-defined]  # marks the function for is_replaced
    return forward


def _is_as_patched(module: nn.Module, types: tuple[type, ...], dtype: torch.dtype) -> bool:
    """Check types, dtypes and hooks while torch.compile traces, where values cannot be compared."""
    modules = list(module.modules())
    if len(modules) != len(types):
        return False
    for inner, expected in zip(modules, types):
        if type(inner) is not expected:
            return False
        if isinstance(inner, (nn.Linear, nn.Conv1d)) and not is_fitting_dtype(expected, inner.weight.dtype, dtype):
            return False
        if inner is not module and (inner._forward_hooks or inner._forward_pre_hooks):
            return False
    return True


def _agrees(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], inputs: Inputs) -> bool:
    """Whether the ops may compute this call; compares both forwards in the first call of a kind."""
    if (
        torch._C._functorch.peek_interpreter_stack() is not None  # tensors under vmap and the like have no values
        or torch.autograd.forward_ad._current_level >= 0
        or torch.nn.modules.module._has_any_global_hook()  # these must see the inner modules
        or not all(value is None or type(value) in (torch.Tensor, nn.Parameter) for value in inputs)
    ):
        return False
    patched: _Patched | None = module.__dict__.get(STATE)
    if patched is None:  # another thread has just restored the original forward
        return False
    snapshot = patched.snapshots.get(tuple(attributes["training"] for attributes in patched.inside))
    unchanged = snapshot is not None and snapshot.is_current()
    if snapshot is None or not unchanged:
        snapshot = Snapshot.of(module)
    state = inputs.state
    if not snapshot.allows_ops(state.dtype):
        return False
    kind = _kind(patched.part, inputs)
    agreed = snapshot.agreed.get(kind)
    if torch._C._len_torch_dispatch_stack() or state.is_cuda and torch.cuda.is_current_stream_capturing():
        return agreed is not False  # no comparison is possible there
    if unchanged:
        patched.changes = 0
    else:
        patched.inside = [inner.__dict__ for inner in module.modules()]
        modes = tuple(attributes["training"] for attributes in patched.inside)
        patched.changes += modes in patched.snapshots
        if patched.changes > _MAX_CHANGES:
            _restore_for_good(module, patched, "its attributes change from call to call, so its results may too")
            return False
        patched.snapshots[modes] = snapshot
    if agreed is None:
        agreed = _check(module, patched, Call(arguments, keywords), inputs)
        if agreed is not None:
            snapshot.agreed[kind] = agreed
    return bool(agreed)


def _check(module: nn.Module, patched: _Patched, call: Call, inputs: Inputs) -> bool | None:
    """Run both forwards on a copy, and restore the original one where they differ.

    Runs the call itself; then, with gradients, the call with random states, because the states of a first call may all
    be alike. A 16-bit call also runs in float32, where rounding hides little.

    Returns:
        Whether the ops compute calls of this kind; None where the comparison decides nothing for later calls.
    """
    try:
        probe = _copy_for_comparison(module, patched)
    except Exception as error:  # of any type: it runs code of other projects
        reason = f"it can no longer be copied, so it cannot be compared ({type(error).__name__}: {first_line(error)})"
        _restore_for_good(module, patched, reason)
        return None
    trials = ["", ", random values"]
    if inputs.state.dtype in (torch.bfloat16, torch.float16):
        trials.append(", in float32")
    forward = op_forward(patched.part, patched.backend)
    agreed = None
    for trial in trials:
        tried = call.with_random_states(inputs) if trial == ", random values" else call
        if trial == ", in float32":
            probe, tried = probe.float(), call.in_float32()
        try:
            outcome = compare(probe, forward, tried, gradients=trial != "" and torch.is_grad_enabled())
        except BackendUnavailable:
            if trial == ", in float32":
                continue
            raise
        if outcome.kind == "incompatible":
            _restore_for_good(module, patched, outcome.reason)
            return None
        if outcome.kind == "different":
            states = f"{list(inputs.state.shape)} {inputs.state.dtype}{trial}"
            mode = "training" if module.training else "evaluation"
            reason = f"{outcome.reason} (states {states}, {mode} mode){suspects(module)}"
            _restore_for_good(module, patched, reason)
            return None
        if outcome.kind == "refused":
            return False
        if outcome.kind == "failed" and trial == "":
            return None
        if outcome.kind == "same":
            agreed = True
    return agreed


def _restore_for_good(module: nn.Module, patched: _Patched, reason: str) -> None:
    restore(module)
    module.__dict__[_DIFFERED] = reason
    name = f"module {patched.name!r}" if patched.name else f"the model ({type(module).__name__})"
    warnings.warn(f"hrm_kernels.patch: {name} uses its original forward from now on: {reason}", stacklevel=5)


def _kind(part: Part, inputs: Inputs) -> Hashable:
    """What calls that are compared once have in common. Of rows by themselves the number counts by powers of two."""
    if part.kind in BY_ROW:
        state, width = inputs.state, inputs.state.shape[-1]
        rows = (state.numel() // width if width else 0).bit_length()
        tensors: Hashable = state.ndim, width, rows, state.dtype, state.device
    else:
        tensors = tuple(None if value is None else (value.shape, value.dtype, value.device) for value in inputs)
    return tensors, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _copy_for_comparison(module: nn.Module, patched: _Patched) -> nn.Module:
    """Copy ``module`` with shared weights, and random values for weights near 0, which would hide differences."""
    memo: dict[int, Any] = {id(patched): None}
    for parameter in module.parameters():
        values = parameter.detach()
        size = values.shape[-1] ** -0.5 if values.ndim > 1 else 1.0
        if values.numel() and values.abs().max() < 0.01 * size:
            generator = torch.Generator(values.device).manual_seed(0)
            values = torch.empty_like(values).normal_(std=size, generator=generator)
        memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    copied = copy.deepcopy(module, memo)
    restore(copied)
    return copied

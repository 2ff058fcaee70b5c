"""The forward that stands in the place of a module's own, and the check of its first calls.

No probe sees everything: attention may be windowed beyond the positions that were tried. So the first call of each kind
(shapes, dtypes, device, modes, optional arguments) runs both forwards on a copy of the module, and where they differ,
its own comes back for good. Later calls of that kind only look whether the module is still what was compared.
"""

import copy
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hrm_kernels.backends import BackendUnavailable
from hrm_kernels.integrations.compare import ELSE, compare, line
from hrm_kernels.integrations.forward import can_serve, ours_of, run
from hrm_kernels.integrations.near_misses import suspects
from hrm_kernels.integrations.structure import Bound, Part

_STATE = "_hrm_kernels_patch"
_DIFFERED = "_hrm_kernels_differed"  # the reason why a module has its own forward back
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CHANGES = 8  # in a row, of attributes of a module, after which it is left alone


@dataclass
class _Look:
    """What a module consists of; two of the same hold as long as nobody has changed anything in it.

    Attributes:
        dictionaries: attributes of each module inside and of its configuration, its children too, and copies of them;
            values are compared by identity first, so this takes little.
        hooks: of the modules inside.
        parameters: where they are, how many, their names and shapes (None for none), and whether an ``nn.Linear`` has
            them, which takes states of their dtype only.
        buffers: where they are, names, values and versions.
        agreed: by kind of call, whether ours computes it (else the own forward does).
    """

    dictionaries: list[tuple[dict[str, Any], dict[str, Any]]]
    hooks: list[dict[Any, Any]]
    parameters: list[tuple[dict[str, Any], int, str, torch.Size | None, bool]]
    buffers: list[tuple[dict[str, Any], str, Any, int]]
    agreed: dict[Hashable, bool] = field(default_factory=dict)

    @classmethod
    def at(cls, module: nn.Module) -> "_Look":
        modules = list(module.modules())
        here = [here for one in modules for here in (one.__dict__, one._modules)]
        here += [
            vars(one) for one in {id(one): one for one in map(_configuration, modules)}.values() if one is not None
        ]
        return cls(
            [(now, dict(now)) for now in here],
            [getattr(one, hooks) for one in modules for hooks in _HOOKS if one is not module],
            [
                (one._parameters, len(one._parameters), name, getattr(value, "shape", None), type(one) is nn.Linear)
                for one in modules
                for name, value in one._parameters.items()
            ],
            [(one._buffers, name, value, _version(value)) for one in modules for name, value in one._buffers.items()],
        )

    def holds(self) -> bool:
        try:
            return (
                all(now == then for now, then in self.dictionaries)
                and all(
                    len(here) == count and getattr(here.get(name), "shape", None) == shape
                    for here, count, name, shape, _ in self.parameters
                )
                and all(
                    here.get(name) is value and _version(value) == version
                    for here, name, value, version in self.buffers
                )
            )
        except Exception:  # two arrays, say, whose comparison is no bool
            return False

    def serves(self, dtype: torch.dtype) -> bool:
        """Whether nothing in the module asks for its own forward."""
        if any(self.hooks):
            return False
        for here, _, name, shape, plain in self.parameters:
            if shape is not None and (type(here[name]) is not nn.Parameter or plain and here[name].dtype != dtype):
                return False
        return True


@dataclass
class _Patched:
    """Of a patched module, in its ``__dict__``; a copy of the module is checked anew.

    Attributes:
        name: in the model, for messages.
        types: of the modules inside.
        inside: the attributes of the modules inside.
        looks: by the modes (training or evaluation) of these.
        changes: how many checks in a row were due to something that had changed in the module.
    """

    part: Part
    backend: str | None
    name: str
    types: tuple[type, ...]
    inside: list[dict[str, Any]] = field(default_factory=list)
    looks: dict[tuple[bool, ...], _Look] = field(default_factory=dict)
    changes: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"inside": [], "looks": {}, "changes": 0}


def replace(module: nn.Module, part: Part, backend: str | None, name: str) -> None:
    types = tuple(type(one) for one in module.modules())
    module.__dict__[_STATE] = _Patched(part, backend, name, types)
    module.__dict__["forward"] = MethodType(_forward_of(part, backend, types), module)


def restore(module: nn.Module) -> bool:
    """Give ``module`` its own forward back, and forget what is known of it; whether it had another from here."""
    module.__dict__.pop(_DIFFERED, None)
    replaced = _STATE in module.__dict__
    if replaced:
        module.__dict__.pop("forward", None)
        module.__dict__.pop(_STATE, None)
    return replaced


def is_replaced(module: nn.Module) -> bool:
    return hasattr(getattr(module.__dict__.get("forward"), "__func__", None), "hrm_kernels_part")


def left_alone(module: nn.Module) -> str | None:
    """Why ``module`` stays as it is: a call has shown a difference, or other code would lose something."""
    if _DIFFERED in module.__dict__:
        return f"a call has shown: {module.__dict__[_DIFFERED]}"
    for inner_name, inner in module.named_modules():
        where = f"{inner_name} inside it" if inner_name else "it"
        if any(getattr(inner, hooks) for hooks in _HOOKS):
            return f"{where} has hooks, which would no longer see what they see now; remove them and patch again"
        forward = inner.__dict__.get("forward")
        if forward is not None and getattr(forward, "__func__", None) is not type(inner).forward:
            return f"the forward of {where} has been replaced by other code"
    return None


def _forward_of(part: Part, backend: str | None, types: tuple[type, ...]) -> Callable[..., Any]:
    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        bound = part.signature.bind(arguments, named)
        if bound is None or not can_serve(part, bound):
            ours = False
        elif torch.compiler.is_compiling():
            ours = _is_as_patched(self, types, bound[0].dtype)
        else:
            ours = _agrees(self, arguments, named, bound)
        if ours:
            return run(self, part, backend, bound)  # type: ignore[arg-type]
        return type(self).forward(self, *arguments, **named)

    forward.hrm_kernels_part = part  # type: ignore[attr-defined]  # by this unpatch knows it
    return forward


def _is_as_patched(module: nn.Module, types: tuple[type, ...], dtype: torch.dtype) -> bool:
    """What can be looked at while torch.compile traces; there is nothing to compare then."""
    modules = list(module.modules())
    if len(modules) != len(types):
        return False
    for one, was in zip(modules, types):
        if type(one) is not was or (was is nn.Linear and one.weight.dtype != dtype):
            return False
        if one is not module and (one._forward_hooks or one._forward_pre_hooks):
            return False
    return True


def _agrees(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], bound: Bound) -> bool:
    """Whether our forward may compute this call; the first of a kind is tried."""
    if (
        torch._C._functorch.peek_interpreter_stack() is not None  # vmap and the like: their tensors have no values
        or torch.autograd.forward_ad._current_level >= 0
        or torch.nn.modules.module._has_any_global_hook()  # they ask to see the modules inside
        or not all(one is None or type(one) in (torch.Tensor, nn.Parameter) for one in bound)
    ):
        return False
    patched: _Patched | None = module.__dict__.get(_STATE)
    if patched is None:  # another thread has just put the own forward back
        return False
    look = patched.looks.get(tuple(one["training"] for one in patched.inside))
    same = look is not None and look.holds()
    if look is None or not same:
        look = _Look.at(module)
    x = bound[0]
    if not look.serves(x.dtype):
        return False
    kind = _kind(bound)
    agreed = look.agreed.get(kind)
    if torch._C._len_torch_dispatch_stack() or x.is_cuda and torch.cuda.is_current_stream_capturing():
        return agreed is not False  # nothing can be compared there
    if same:
        patched.changes = 0
    else:
        patched.inside = [one.__dict__ for one in module.modules()]
        modes = tuple(one["training"] for one in patched.inside)
        patched.changes += modes in patched.looks
        if patched.changes > _CHANGES:
            return _put_back(module, patched, "its attributes change from call to call, and so may what it computes")
        patched.looks[modes] = look
    if agreed is None:
        agreed = _check(module, patched, look, kind, arguments, named, bound)
    return agreed


def _check(
    module: nn.Module,
    patched: _Patched,
    look: _Look,
    kind: Hashable,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    bound: Bound,
) -> bool:
    """Run both forwards on a copy.

    First on this call; then, with gradients, on states drawn anew, because those of a first call may be all alike. A
    call in 16 bits is tried in float32 too, if the module takes it, where little is hidden by rounding.
    """
    try:
        twin = _twin(module, patched)
    except Exception as error:  # of any kind: the code is not ours
        reason = f"it cannot be copied any more, and so not tried ({type(error).__name__}: {line(error)})"
        return _put_back(module, patched, reason)
    ours = ours_of(patched.part, patched.backend)
    trials = ["", " drawn for a trial", *([" in float32"] if bound[0].dtype in (torch.bfloat16, torch.float16) else [])]
    known = False
    for trial in trials:
        given = _drawn(arguments, named, bound) if trial == " drawn for a trial" else (arguments, named)
        if trial == " in float32":
            twin, given = twin.float(), tree_map(_wide, given)
        try:
            outcome = compare(twin, ours, *given, gradients=trial != "" and torch.is_grad_enabled())
        except BackendUnavailable:
            if trial == " in float32":
                continue
            raise
        if outcome.kind == "different":
            if not outcome.reason.startswith(ELSE):
                return _put_back(module, patched, outcome.reason)
            what = f"{list(bound[0].shape)} {bound[0].dtype}{trial}"
            mode = "training" if module.training else "evaluation"
            return _put_back(module, patched, f"{outcome.reason} (states {what}, {mode} mode){suspects(module)}")
        if outcome.kind == "refused":
            look.agreed[kind] = False
            return False
        if outcome.kind == "failed" and trial == "":
            return False
        known = known or outcome.kind == "same"
    if known:
        look.agreed[kind] = True
    return known


def _put_back(module: nn.Module, patched: _Patched, reason: str) -> bool:
    restore(module)
    module.__dict__[_DIFFERED] = reason
    name = f"module {patched.name!r}" if patched.name else f"the model ({type(module).__name__})"
    warnings.warn(f"hrm_kernels.patch: {name} has its own forward back for good: {reason}", stacklevel=5)
    return False


def _kind(bound: Bound) -> Hashable:
    tensors = tuple(
        None if one is None else (one.shape, one.dtype, one.device)  # type: ignore[union-attr]
        for one in bound
    )
    return tensors, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _configuration(module: nn.Module) -> Any:
    given = (module.__dict__.get(name) for name in ("config", "cfg", "args"))
    return next((one for one in given if hasattr(one, "__dict__") and not isinstance(one, type)), None)


def _version(buffer: torch.Tensor | None) -> int:
    return -1 if buffer is None or buffer.is_inference() else buffer._version


def _twin(module: nn.Module, patched: _Patched) -> nn.Module:
    """A copy that reads the weights where they are, but has drawn some for those near 0, which hide things."""
    memo: dict[int, Any] = {id(patched): None}
    for parameter in module.parameters():
        values = parameter.detach()
        size = values.shape[-1] ** -0.5 if values.ndim > 1 else 1.0
        if values.numel() and values.abs().max() < 0.01 * size:
            generator = torch.Generator(values.device).manual_seed(0)
            values = torch.empty_like(values).normal_(std=size, generator=generator)
        memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    twin = copy.deepcopy(module, memo)
    restore(twin)
    return twin


def _wide(one: Any) -> Any:
    if not isinstance(one, torch.Tensor) or not one.is_floating_point():
        return one
    return one.detach().float().requires_grad_(one.requires_grad)


def _drawn(arguments: tuple[Any, ...], named: dict[str, Any], bound: Bound) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with states drawn anew, of the size that they have."""
    states: dict[int, torch.Tensor] = {}
    for at, one in enumerate(bound[:2]):
        if isinstance(one, torch.Tensor):
            generator = torch.Generator(one.device).manual_seed(at)
            size = one.detach().float().square().mean().sqrt()
            size = torch.where(size.isfinite() & (size > 0), size, 1)
            values = torch.randn(one.shape, generator=generator, device=one.device, dtype=torch.float32) * size
            states[id(one)] = values.to(one.dtype).requires_grad_(torch.is_grad_enabled())
    pick = lambda one: states.get(id(one), one)  # noqa: E731
    return tuple(map(pick, arguments)), {name: pick(one) for name, one in named.items()}

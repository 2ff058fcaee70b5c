"""Recognise modules of other projects by structure and parameter names, not by class or import path.

The result is a guess; :mod:`hrm_kernels.integrations.probe` confirms it.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hrm_kernels.instruction_sets import pytorch_lacks_bfloat16
from hrm_kernels.integrations.calls import Inputs
from hrm_kernels.integrations.near_misses import (
    expected_heads,
    grouped_heads_reason,
    is_linear,
    is_projection,
    is_transposed,
    near_miss_reason,
    number_of_heads,
    projection_reason,
)

_QKV = ("qkv_proj", "qkv", "Wqkv", "to_qkv", "c_attn", "query_key_value")
_OUT = ("o_proj", "out_proj", "proj", "Wo", "to_out", "c_proj", "dense")
_GATE_UP = ("gate_up_proj", "gate_up", "Wi", "w12")
_DOWN = ("down_proj", "down", "Wo", "w3")
_GATE_AND_UP = (
    *(("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"), ("gate", "up"), ("fc1_g", "fc1_x")),
    *(("w_gate", "w_up"), ("linear_gate", "linear_up"), ("fc_gate", "fc_up"), ("W_gate", "W_up")),
)
_DOWN_OF_SEPARATE = ("down_proj", "down", "w2", "wo", "w_down", "linear_down", "W_down", "fc2", "Wo")
_EPS = ("norm_eps", "rms_norm_eps", "eps", "variance_epsilon")

_HIDDEN = ("hidden_states", "x", "z", "h", "input", "inputs", "src")
_INJECTION = ("input_injection", "injection")
_TABLES = ("cos_sin", "position_embeddings", "rope", "rotary")

PUBLISHED_EPS = 1e-5
"""For modules without an eps attribute; the probe shows when this guess is wrong."""


class Unfit(Exception):
    """The module looks like an op, but no op can compute it; the message is the reason."""


@dataclass(frozen=True)
class Signature:
    """Names of the arguments of a module's ``forward``.

    Attributes:
        names: positional arguments, in order.
        required: arguments without a default.
        defaults: default values of the others.
        hidden: the argument for the state.
        injection: the argument for what a reasoning module adds to the state; None for other modules.
        tables: the argument for the pair ``(cos, sin)``; ``("cos", "sin")`` for two arguments; None without RoPE.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    defaults: dict[str, Any]
    hidden: str
    injection: str | None
    tables: str | tuple[str, str] | None

    @property
    def known(self) -> tuple[str, ...]:
        tables = self.tables if isinstance(self.tables, tuple) else (self.tables,)
        return tuple(name for name in (self.hidden, self.injection, *tables) if name is not None)

    def bind(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Inputs | None:
        """The inputs of a call; None for a wrong call, or one with arguments that the ops do not know."""
        values = dict(zip(self.names, arguments))
        if len(arguments) > len(self.names) or values.keys() & keywords.keys():
            return None
        values |= keywords
        if any(name not in values for name in self.required):
            return None
        hidden = values.pop(self.hidden, None)
        injection = values.pop(self.injection, None) if self.injection else None
        cos = sin = None
        if isinstance(self.tables, tuple):
            cos, sin = (values.pop(name, None) for name in self.tables)
        elif self.tables is not None:
            pair = values.pop(self.tables, None)
            if pair is not None:
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    return None
                cos, sin = pair
        if any(value is not self.defaults.get(name) for name, value in values.items()):
            return None
        return Inputs(hidden, injection, cos, sin) if isinstance(hidden, torch.Tensor) else None


@dataclass(frozen=True)
class Part:
    """A module that one of the ops could compute.

    Attributes:
        kind: ``linear``, ``bfloat16_linear``, ``norm``, ``swiglu``, ``conv_swiglu``, ``attention``, ``block``,
            ``conv_block``, ``mixing_block``, ``module`` or ``mixing_module``.
        signature: the arguments of its ``forward``.
        names: attributes with its components (projections; attention and MLP; the list of layers). A SwiGLU has
            gate and up in one projection (two names), or separate (three).
        inner: the recognised parts among these, in order.
        num_heads, eps: of attention and norms.
    """

    kind: str
    signature: Signature
    names: tuple[str, ...] = ()
    inner: tuple["Part", ...] = ()
    num_heads: int = 0
    eps: float = PUBLISHED_EPS


def recognise(module: nn.Module) -> Part | None:
    """Return the part that ``module`` looks like, or None where it resembles no op.

    Raises:
        Unfit: it resembles one, but the ops cannot compute it.
    """
    for recognise_kind in (_linear, _norm, _swiglu, _attention, _block, _module):
        part = recognise_kind(module)
        if part is not None:
            return part
    for name in ("TransformerEncoderLayer", "TransformerDecoderLayer", "MultiheadAttention"):
        if isinstance(module, getattr(nn, name)):
            raise Unfit(
                f"nn.{name} has biases"
                + (", LayerNorm with weight and bias, and an MLP without gate" if "Layer" in name else "")
                + "; the ops support none of these (docs/patch.md shows a block that can be replaced)"
            )
    reason = near_miss_reason(module, _OUT)
    if reason is not None:
        raise Unfit(reason)
    return None


def _linear(module: nn.Module) -> Part | None:
    if not is_linear(module):
        return None
    signature = _signature(module)
    if type(module) is nn.Linear:  # what a class that inherits its forward does besides is not known
        gains = (
            module.weight.dtype is torch.bfloat16 and module.weight.device.type == "cpu" and pytorch_lacks_bfloat16()
        )
        return Part("bfloat16_linear", signature) if gains and signature is not None else None
    if type(module).forward is nn.Linear.forward:  # nothing to gain
        return None
    if signature is None or signature.tables:
        return None
    if is_transposed(module):
        raise Unfit(
            f"it is a linear layer that stores its weight as [in, out] ({type(module).__name__}), not [out, in]"
        )
    return Part("linear", signature)


def _norm(module: nn.Module) -> Part | None:
    """RMSNorm: a module with an eps, perhaps a vector ``weight``, and nothing else."""
    eps = next((value for name in _EPS if isinstance(value := getattr(module, name, None), float)), None)
    if not eps or type(module).forward.__module__.startswith("torch.nn."):  # PyTorch's own norms
        return None
    present = {name: values for name, values in module._parameters.items() if values is not None}
    weight = present.pop("weight", None)
    if present or module._buffers or next(module.children(), None) is not None:
        return None
    if weight is not None and (type(weight) is not nn.Parameter or weight.ndim != 1 or not weight.is_floating_point()):
        return None
    signature = _signature(module)
    return None if signature is None or signature.tables else Part("norm", signature, eps=eps)


def _swiglu(module: nn.Module) -> Part | None:
    separate = _separate_swiglu(module)
    if separate is not None:
        return separate
    names = _first(module, _GATE_UP), _first(module, _DOWN)
    if names[0] is None or names[1] is None:
        return None
    gate_up, down = _matrices("SwiGLU", module, names, biases=True)
    if gate_up.shape[0] != 2 * down.shape[1] or gate_up.shape[1] != down.shape[0]:
        shapes = f"{names[0]} is {list(gate_up.shape)} and {names[1]} {list(down.shape)}"
        if gate_up.shape[::-1] == down.shape:
            raise Unfit(f"it is an MLP without gate ({shapes}), which no op computes")
        raise Unfit(f"it looks like SwiGLU, but {shapes}, expected [2 I, D] and [D, I]")
    convolution = _convolution(module, down.shape[1])
    if convolution is not None:
        return Part("conv_swiglu", _needed_signature("ConvSwiGLU", module), (*names, convolution))  # type: ignore[arg-type]
    return Part("swiglu", _needed_signature("SwiGLU", module), names)  # type: ignore[arg-type]


def _convolution(module: nn.Module, inner: int) -> str | None:
    """The name of URM's convolution: of each channel by itself, over its position and the one before; None without."""
    for name, child in module.named_children():
        if type(child) is nn.Conv1d and child.groups == child.in_channels == child.out_channels == inner:
            sizes = (child.kernel_size, child.padding, child.stride, child.dilation, child.padding_mode)
            if sizes == ((2,), (1,), (1,), (1,), "zeros") and child.bias is not None:
                return name
    return None


def _separate_swiglu(module: nn.Module) -> Part | None:
    pair = next(
        (pair for pair in _GATE_AND_UP if all(is_projection(getattr(module, name, None)) for name in pair)), None
    )
    last = _first(module, tuple(name for name in _DOWN_OF_SEPARATE if pair and name not in pair))
    if pair is None or last is None:
        return None
    gate, up, down = _matrices("SwiGLU", module, (*pair, last), biases=True)
    if not gate.shape == up.shape == down.shape[::-1]:
        shapes = f"{pair[0]} is {list(gate.shape)}, {pair[1]} {list(up.shape)} and {last} {list(down.shape)}"
        raise Unfit(f"it looks like SwiGLU, but {shapes}, expected [I, D] twice and [D, I]")
    return Part("swiglu", _needed_signature("SwiGLU", module), (*pair, last))


def _attention(module: nn.Module) -> Part | None:
    names = _first(module, _QKV), _first(module, _OUT)
    if names[0] is None or names[1] is None:
        return None
    qkv, out = _matrices("attention", module, names)
    heads = number_of_heads(module)
    if heads is None:
        raise Unfit(
            f"it looks like attention ({', '.join(map(str, names))}), but it does not say how many heads it has; "
            f"expected an attribute {expected_heads()}"
        )
    if qkv.shape[0] != 3 * out.shape[1] or out.shape[1] % heads:
        raise Unfit(
            f"it looks like attention, but {grouped_heads_reason(module, names[0], qkv.shape[0], out.shape[1], heads)}"
        )
    return Part("attention", _needed_signature("attention", module), names, num_heads=heads)  # type: ignore[arg-type]


def _block(module: nn.Module) -> Part | None:
    if isinstance(module, nn.Sequential):  # its children run one after the other, without norms between them
        return None
    parts: dict[str, Part] = {}
    unfit: dict[str, str] = {}
    for name, child in module.named_children():
        part = None
        try:
            part = _swiglu(child) or _attention(child)
        except Unfit:
            unfit[name] = f"{name} does not fit (see {name})"
        if part is not None and (reason := _only_by_itself(child, part)) is not None:
            unfit[name] = f"{name} {reason}, which only swiglu by itself takes"
        elif part is not None:
            parts[name] = part
        elif name not in unfit and near_miss_reason(child, _OUT) is not None:
            unfit[name] = f"{name} does not fit (see {name})"
    if len(parts) + len(unfit) != 2:
        return None
    kinds = [part.kind for part in parts.values()]
    if kinds == ["attention", "attention"] or ("conv_swiglu" in kinds and "attention" not in kinds):
        return None
    known = (*parts, *unfit)
    rest = [name for name, child in module.named_children() if name not in known and _has_parameters(child)]
    rest += module._parameters
    reasons = list(unfit.values())
    if rest:
        have = f"{rest[0]} has" if len(rest) == 1 else f"{', '.join(rest)} have"
        reasons.append(f"{have} parameters; add_rms_norm has neither weight nor bias")
    if reasons:
        raise Unfit(f"it looks like a block ({', '.join(known)}), but {'; '.join(reasons)}")
    mixing = sorted(kinds) == ["swiglu", "swiglu"]
    names = tuple(parts) if mixing else tuple(sorted(parts, key=lambda name: parts[name].kind))
    return Part(
        "mixing_block" if mixing else "conv_block" if "conv_swiglu" in kinds else "block",
        _needed_signature("a block", module),
        names,
        tuple(parts[name] for name in names),
        num_heads=max(part.num_heads for part in parts.values()),
        eps=_eps(module),
    )


def _only_by_itself(module: nn.Module, part: Part) -> str | None:
    """What keeps the op of a whole block from computing a part that fits; None where nothing does."""
    if part.kind == "swiglu" and len(part.names) == 3:
        return "has separate gate and up projections"
    projections = part.names[:2] if part.kind == "conv_swiglu" else part.names
    if any(getattr(module, name)._parameters.get("bias") is not None for name in projections):
        return "has biases"
    return None


def _module(module: nn.Module) -> Part | None:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        return None
    signature = _signature(module, layers[0])
    if signature is None or signature.injection is None:
        return None
    parts = tuple(_block(layer) for layer in layers)
    kinds = {None if part is None else (part.kind, part.num_heads, part.eps) for part in parts}
    if None in kinds or len(kinds) > 1:
        raise Unfit("its layers are not all blocks of attention and SwiGLU with the same heads and eps")
    others = [name for name, child in module.named_children() if name != "layers" and _has_parameters(child)]
    if others or module._parameters:
        raise Unfit(f"it has parameters outside its layers ({', '.join([*others, *module._parameters])})")
    block = parts[0]
    assert block is not None
    if block.kind == "conv_block":  # a URM adds its injection outside
        return None
    return Part(
        "mixing_module" if block.kind == "mixing_block" else "module",
        signature,
        ("layers",),
        tuple(part for part in parts if part is not None),
        num_heads=block.num_heads,
        eps=block.eps,
    )


def _first(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def _matrices(kind: str, module: nn.Module, names: tuple[str | None, ...], biases: bool = False) -> list[torch.Tensor]:
    """Return the weights of the projections, which must have no bias unless ``biases``."""
    linears = [(name, getattr(module, name)) for name in names if name is not None]
    reasons = [reason for name, linear in linears if (reason := projection_reason(name, linear, biases)) is not None]
    if reasons:
        raise Unfit(f"it looks like {kind}, but {'; '.join(reasons)}")
    return [linear.weight for _, linear in linears]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _eps(module: nn.Module) -> float:
    config = getattr(module, "config", None)
    norms = [child for child in module.children() if not _has_parameters(child)]
    for owner in (module, *norms, config):
        for name in _EPS:
            value = getattr(owner, name, None)
            if isinstance(value, float) and value > 0:
                return value
    return PUBLISHED_EPS


def _needed_signature(kind: str, module: nn.Module) -> Signature:
    signature = _signature(module)
    if signature is None:
        names = ", ".join(list(inspect.signature(type(module).forward).parameters)[1:])
        raise Unfit(f"it looks like {kind}, but its forward takes ({names}); expected one of {', '.join(_HIDDEN)}")
    return signature


def _signature(module: nn.Module, inner: nn.Module | None = None) -> Signature | None:
    """Read the signature of ``module.forward``; ``inner`` receives its ``**kwargs``."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(parameter.name for parameter in parameters if parameter.kind in positional)
    single = [parameter for parameter in parameters if parameter.kind in (*positional, inspect.Parameter.KEYWORD_ONLY)]
    defaults = {parameter.name: parameter.default for parameter in single}
    known = [parameter.name for parameter in parameters]
    if inner is not None and any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        known += inspect.signature(type(inner).forward).parameters
    hidden = next((name for name in _HIDDEN if name in names), None)
    if hidden is None:
        return None
    tables: str | tuple[str, str] | None = next((name for name in _TABLES if name in known), None)
    if tables is None and {"cos", "sin"} <= set(known):
        tables = ("cos", "sin")
    return Signature(
        names,
        tuple(name for name, default in defaults.items() if default is inspect.Parameter.empty),
        {name: default for name, default in defaults.items() if default is not inspect.Parameter.empty},
        hidden,
        next((name for name in _INJECTION if name in names), None),
        tables,
    )

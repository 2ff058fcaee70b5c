"""Run modules of other projects on the ops, with the modules' parameters."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hrm_kernels.backends import use_backend
from hrm_kernels.casts import cast
from hrm_kernels.integrations.calls import Inputs
from hrm_kernels.integrations.projections import is_slow_in_pytorch, project, project_both
from hrm_kernels.integrations.structure import Part
from hrm_kernels.ops.add_rms_norm import add_rms_norm
from hrm_kernels.ops.conv_swiglu import conv_swiglu
from hrm_kernels.ops.reasoning_module import reasoning_module
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.swiglu import swiglu
from hrm_kernels.ops.transformer_block import BlockWeights, Layer, MixingBlockWeights, transformer_block

OPS = {
    "linear": "a cast of its weight that frozen_weights keeps",
    "bfloat16_linear": "linear",
    "norm": "add_rms_norm",
    "swiglu": "swiglu",
    "conv_swiglu": "conv_swiglu",
    "attention": "rope_attention",
    "block": "transformer_block",
    "conv_block": "rope_attention, conv_swiglu, add_rms_norm",
    "mixing_block": "transformer_block",
    "module": "reasoning_module",
    "mixing_module": "reasoning_module",
}
"""The ops that compute each kind of part, as the report names them."""

BY_ROW = ("linear", "norm", "swiglu")
"""Kinds that compute each row of the state by itself."""

_SMALL = {"norm": 2**18, "swiglu": 2**15}
"""Elements of the state from which an op saves more than its call takes longer than the original forward's."""

Tables = torch.Tensor | None


def op_forward(part: Part, backend: str | None) -> Callable[..., torch.Tensor]:
    """Return a ``forward(self, ...)`` on the ops, with the signature of the original one.

    It raises TypeError or ValueError where the ops do not take the arguments.
    """

    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> torch.Tensor:
        inputs = part.signature.bind(arguments, keywords)
        if inputs is None:
            raise TypeError(f"the call has arguments other than {', '.join(part.signature.known)}")
        return run(self, part, backend, inputs)

    return forward


def run(module: nn.Module, part: Part, backend: str | None, inputs: Inputs) -> torch.Tensor:
    """Compute a call on the ops."""
    with nullcontext() if backend is None else use_backend(backend):
        return _RUN[part.kind](module, part, *inputs)


def can_serve(part: Part, inputs: Inputs) -> bool:
    """Whether the ops take these inputs; other calls run the module's original forward."""
    x, injection, *tables = inputs
    if torch.is_autocast_enabled(x.device.type):
        return False
    if part.kind == "norm" and x.dtype not in (torch.float32, torch.bfloat16):  # float16 overflows in the sum of two x
        return False
    if part.kind not in BY_ROW and x.ndim != 3:
        return False
    if not all(table is None or (isinstance(table, torch.Tensor) and table.ndim == 2) for table in tables):
        return False
    if part.signature.injection is None:
        return True
    if not isinstance(injection, torch.Tensor) or injection.dtype != x.dtype or injection.ndim > x.ndim:
        return False
    return all(a in (1, b) for a, b in zip(injection.shape[::-1], x.shape[::-1]))


def pays(part: Part, x: torch.Tensor) -> bool:
    """Whether an op is worth its call, for the parts of other projects' models that PyTorch computes well itself."""
    if part.kind == "swiglu" and is_slow_in_pytorch(x):
        return True
    if part.kind == "norm" or (part.kind == "swiglu" and len(part.names) == 3):
        # torch.compile fuses them with their neighbours
        return x.numel() >= _SMALL[part.kind] and not torch.compiler.is_compiling()
    return True


def _weight(module: nn.Module, name: str, dtype: torch.dtype) -> torch.Tensor:
    return cast(getattr(module, name).weight, dtype)


def _linear(module: nn.Module, part: Part, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return project(x, module)


def _norm(module: nn.Module, part: Part, x: torch.Tensor, *_: Any) -> torch.Tensor:
    # the norm of x + x, with four times the eps: doubling is exact
    normed = add_rms_norm(x, x, 4 * part.eps)
    weight = module._parameters.get("weight")
    return normed if weight is None else weight * normed


def _swiglu(module: nn.Module, part: Part, x: torch.Tensor, *_: Any) -> torch.Tensor:
    *gate_and_up, down = (getattr(module, name) for name in part.names)
    gate_up = project(x, *gate_and_up) if len(gate_and_up) == 1 else project_both(x, *gate_and_up)
    return project(swiglu(gate_up), down)


def _conv_swiglu(module: nn.Module, part: Part, x: torch.Tensor, *_: Any) -> torch.Tensor:
    gate_up, down, convolution = (getattr(module, name) for name in part.names)
    weight, bias = cast(convolution.weight, x.dtype).squeeze(1), cast(convolution.bias, x.dtype)
    return project(conv_swiglu(project(x, gate_up), weight, bias), down)


def _attention(module: nn.Module, part: Part, x: torch.Tensor, _: Any, cos: Tables, sin: Tables) -> torch.Tensor:
    qkv, out = (_weight(module, name, x.dtype) for name in part.names)
    return F.linear(rope_attention(F.linear(x, qkv), cos, sin, part.num_heads), out)


def _weights(module: nn.Module, part: Part, dtype: torch.dtype) -> Layer:
    matrices = []
    for name, inner in zip(part.names, part.inner, strict=True):
        matrices += [_weight(getattr(module, name), inner_name, dtype) for inner_name in inner.names]
    return MixingBlockWeights(*matrices) if part.kind == "mixing_block" else BlockWeights(*matrices)


def _block(module: nn.Module, part: Part, x: torch.Tensor, _: Any, cos: Tables, sin: Tables) -> torch.Tensor:
    return transformer_block(x, _weights(module, part, x.dtype), cos, sin, part.num_heads, part.eps)


def _conv_block(module: nn.Module, part: Part, x: torch.Tensor, _: Any, cos: Tables, sin: Tables) -> torch.Tensor:
    attention, mlp = (getattr(module, name) for name in part.names)
    of_attention, of_mlp = part.inner
    x = add_rms_norm(x, _attention(attention, of_attention, x, None, cos, sin), part.eps)
    return add_rms_norm(x, _conv_swiglu(mlp, of_mlp, x), part.eps)


def _mixing_block(module: nn.Module, part: Part, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return transformer_block(x, _weights(module, part, x.dtype), None, None, 0, part.eps)


def _module(
    module: nn.Module, part: Part, z: torch.Tensor, injection: torch.Tensor, cos: Tables, sin: Tables
) -> torch.Tensor:
    layers = [_weights(layer, inner, z.dtype) for layer, inner in zip(module.layers, part.inner, strict=True)]  # type: ignore[arg-type]
    num_heads = 0 if part.kind == "mixing_module" else part.num_heads
    return reasoning_module(z, injection.expand_as(z), layers, cos, sin, num_heads, part.eps)


def _mixing_module(module: nn.Module, part: Part, z: torch.Tensor, injection: torch.Tensor, *_: Any) -> torch.Tensor:
    return _module(module, part, z, injection, None, None)


_RUN: dict[str, Callable[..., torch.Tensor]] = {
    "linear": _linear,
    "norm": _norm,
    "swiglu": _swiglu,
    "conv_swiglu": _conv_swiglu,
    "attention": _attention,
    "block": _block,
    "conv_block": _conv_block,
    "mixing_block": _mixing_block,
    "module": _module,
    "mixing_module": _mixing_module,
}

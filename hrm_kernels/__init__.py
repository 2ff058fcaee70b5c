"""Kernels for recurrent reasoning models: the ops of HRM and its relatives, each with several backends."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hrm_kernels.backends import BackendUnavailable, available_backends, explain, use_backend
from hrm_kernels.casts import frozen_weights
from hrm_kernels.damping import Damping
from hrm_kernels.fixed_point import fixed_point
from hrm_kernels.noise import noise
from hrm_kernels.ops import specs
from hrm_kernels.ops.add_rms_norm import add_rms_norm
from hrm_kernels.ops.conv_cycles import ConvBlockWeights, conv_cycles
from hrm_kernels.ops.conv_swiglu import conv_swiglu
from hrm_kernels.ops.linear import linear
from hrm_kernels.ops.reasoning_module import reasoning_module
from hrm_kernels.ops.recurrent_cycles import recurrent_cycles
from hrm_kernels.ops.recurrent_segment import recurrent_segment
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy
from hrm_kernels.ops.swiglu import swiglu
from hrm_kernels.ops.token_mixing import token_mixing
from hrm_kernels.ops.transformer_block import (
    BlockWeights,
    MixingBlockWeights,
    PreNormBlockWeights,
    transformer_block,
)

if TYPE_CHECKING:
    from hrm_kernels import nn, optim
    from hrm_kernels.integrations.patch import PatchReport, patch, unpatch

    __version__: str

__all__ = [
    "BackendUnavailable",
    "BlockWeights",
    "ConvBlockWeights",
    "Damping",
    "MixingBlockWeights",
    "PatchReport",
    "PreNormBlockWeights",
    "__version__",
    "add_rms_norm",
    "available_backends",
    "conv_cycles",
    "conv_swiglu",
    "explain",
    "fixed_point",
    "frozen_weights",
    "linear",
    "nn",
    "noise",
    "optim",
    "patch",
    "reasoning_module",
    "recurrent_cycles",
    "recurrent_segment",
    "rope_attention",
    "specs",
    "stablemax_cross_entropy",
    "swiglu",
    "token_mixing",
    "transformer_block",
    "unpatch",
    "use_backend",
]

_HOME = {"PatchReport": "integrations", "patch": "integrations", "unpatch": "integrations"}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used. Ops are imported at once: that registers ``torch.ops.hrm_kernels``."""
    if name == "__version__":
        return import_module("hrm_kernels.versions").own()
    if name in ("nn", "optim"):
        return import_module(f"hrm_kernels.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'hrm_kernels' has no attribute {name!r}")
    return getattr(import_module(f"hrm_kernels.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

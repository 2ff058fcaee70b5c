"""Kernels for recurrent reasoning models: the ops of HRM and its relatives, each with several backends."""

from hrm_kernels.backends import BackendUnavailable, backends, explain, use_backend
from hrm_kernels.casts import frozen_weights
from hrm_kernels.fixed_point import fixed_point
from hrm_kernels.integrations import PatchReport, patch, unpatch
from hrm_kernels.ops.add_rms_norm import add_rms_norm
from hrm_kernels.ops.linear import linear
from hrm_kernels.ops.reasoning_module import reasoning_module
from hrm_kernels.ops.recurrent_cycles import recurrent_cycles
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy
from hrm_kernels.ops.swiglu import swiglu
from hrm_kernels.ops.token_mixing import token_mixing
from hrm_kernels.ops.transformer_block import BlockWeights, transformer_block

__all__ = [
    "BackendUnavailable",
    "BlockWeights",
    "PatchReport",
    "add_rms_norm",
    "backends",
    "explain",
    "fixed_point",
    "frozen_weights",
    "linear",
    "patch",
    "reasoning_module",
    "recurrent_cycles",
    "rope_attention",
    "stablemax_cross_entropy",
    "swiglu",
    "token_mixing",
    "transformer_block",
    "unpatch",
    "use_backend",
]

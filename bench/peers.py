"""Functions of other packages that compute the same as an op of ``hrm_kernels``, where they are installed."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from bench import openvino_peer
from hrm_kernels.ops.rope_attention.reference import apply_rope

PIP = {
    "liger_kernel": "pip install liger-kernel",
    "flash_attn": "pip install flash-attn",
    "adam_atan2": "pip install adam-atan2",
    "adam_atan2_pytorch": "pip install adam-atan2-pytorch",
    "openvino": "pip install openvino",
}
"""How to install the packages that pip has."""


@dataclass(frozen=True)
class Peer:
    """
    Attributes:
        name: name in the tables.
        kind: the op it computes.
        package: the package it needs; None is torch itself.
        needs_gpu: runs on NVIDIA GPUs only, else on CPUs and GPUs.
        op: takes the op's arguments.
        is_same: computes the same values, so they are checked.
        on_cpu_only: runs on CPUs only.
        differentiates: has gradients.
    """

    name: str
    kind: str
    package: str | None
    needs_gpu: bool
    op: Callable[..., Any]
    is_same: bool = True
    on_cpu_only: bool = False
    differentiates: bool = True

    def absent_reason(self, device: str, backward: bool = False) -> str | None:
        """None if it can run, else why not."""
        if self.needs_gpu and device != "cuda":
            return "runs on NVIDIA GPUs only"
        if self.on_cpu_only and device != "cpu":
            return "runs on CPUs only"
        if backward and not self.differentiates:
            return "has no gradients"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed; {PIP.get(self.package, 'see its documentation')}"
        return None


def _liger_norm(x: torch.Tensor, residual: torch.Tensor, eps: float) -> torch.Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    weight = x.new_ones(x.shape[-1])  # Liger requires one
    return LigerRMSNormFunction.apply(x + residual, weight, eps, 0.0, "llama", False)


def _liger_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gate, up = gate_up.chunk(2, -1)
    return LigerSiLUMulFunction.apply(gate, up)


def _rotated(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v ``[B, S, H, d]``."""
    B, S, columns = qkv.shape
    q, k, v = qkv.view(B, S, 3, num_heads, columns // (3 * num_heads)).unbind(2)
    return apply_rope(q, cos[:S, None], sin[:S, None]), apply_rope(k, cos[:S, None], sin[:S, None]), v


def _flash_attn(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int) -> torch.Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(*_rotated(qkv, cos, sin, num_heads)).flatten(2)


def _flash_attn_3(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int) -> torch.Tensor:
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(*_rotated(qkv, cos, sin, num_heads))
    return (out[0] if isinstance(out, tuple) else out).flatten(2)  # some versions also return the log-sum-exp


def _cudnn(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int) -> torch.Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (t.transpose(1, 2) for t in _rotated(qkv, cos, sin, num_heads))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _with(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> Callable[..., Any]:
    """A step of another optimiser on the same parameters; ``make`` creates it at the first step."""
    made: WeakKeyDictionary[torch.optim.Optimizer, torch.optim.Optimizer] = WeakKeyDictionary()

    def step(key: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        if key not in made:
            made[key] = make(parameters)
        made[key].step()
        return parameters

    return step


def _adam_atan2(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    from adam_atan2 import AdamATan2

    return AdamATan2(parameters, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))


def _adam_atan2_pytorch(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    from adam_atan2_pytorch import AdamAtan2

    return AdamAtan2(parameters, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), a=1.0)


def _fused_adamw(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True)


PEERS = [
    Peer("Liger", "add_rms_norm", "liger_kernel", True, _liger_norm),
    Peer("Liger", "swiglu", "liger_kernel", True, _liger_swiglu),
    Peer("flash-attn 2", "rope_attention", "flash_attn", True, _flash_attn),
    Peer("flash-attn 3", "rope_attention", "flash_attn_interface", True, _flash_attn_3),
    Peer("cuDNN", "rope_attention", None, True, _cudnn),
    Peer(
        "OpenVINO",
        "transformer_block",
        "openvino",
        False,
        openvino_peer.transformer_block,
        on_cpu_only=True,
        differentiates=False,
    ),
    Peer("adam-atan2", "AdamATan2", "adam_atan2", True, _with(_adam_atan2)),
    # both follow another update rule than AdamATan2: their cost is compared, not their values
    Peer("torch fused AdamW", "AdamATan2", None, False, _with(_fused_adamw), is_same=False),
    Peer("adam-atan2-pytorch", "AdamATan2", "adam_atan2_pytorch", False, _with(_adam_atan2_pytorch), is_same=False),
]

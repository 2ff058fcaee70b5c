import torch
import torch.nn.functional as F

from hrm_kernels.ops.add_rms_norm.reference import add_rms_norm
from hrm_kernels.ops.swiglu.reference import swiglu


def token_mixing(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return mix(x.transpose(1, 2), gate_up, down, eps).transpose(1, 2).contiguous()


def mix(across: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float) -> torch.Tensor:
    """``[..., S]``, a row per channel, over the positions."""
    return add_rms_norm(across, F.linear(swiglu(F.linear(across, gate_up)), down), eps)

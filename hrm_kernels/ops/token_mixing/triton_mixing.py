"""Token mixing out of Triton launches and library matrix products, over the transposed state.

Kept for the backward, per channel: x across the positions, the sum before the norm (S each) and gate_up (2 I) in the
dtype, 1/rms in float32.
"""

from typing import Any

import torch

from hrm_kernels.ops.add_rms_norm import triton_kernels as norm
from hrm_kernels.ops.swiglu import triton_kernels as swiglu


def _across(x: torch.Tensor) -> torch.Tensor:
    """``[B, S, D]`` -> ``[B D, S]``, a row per channel."""
    return x.transpose(1, 2).reshape(-1, x.shape[1])


def _back(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``[B D, S]`` -> the shape ``[B, S, D]`` of ``like``."""
    batch, positions, dim = like.shape
    return rows.view(batch, dim, positions).transpose(1, 2).contiguous()


class TokenMixing(torch.autograd.Function):
    """``apply(x [B, S, D], gate_up [2 I, S], down [S, I], eps, save)``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float, save: bool
    ) -> torch.Tensor:
        rows = _across(x)
        hidden = rows @ gate_up.t()
        out, u, rstd = norm.forward(rows, swiglu.forward(hidden) @ down.t(), eps, save)
        if save:
            ctx.save_for_backward(rows, hidden, u, rstd, gate_up, down)
        return _back(out, x)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:  # type: ignore[override]
        rows, hidden, u, rstd, gate_up, down = ctx.saved_tensors
        du = norm.backward(_across(dout), u, rstd)
        dhidden = swiglu.backward(du @ down, hidden)
        dx = torch.addmm(du, dhidden, gate_up)
        return _back(dx, dout), dhidden.t() @ rows, du.t() @ swiglu.forward(hidden), None, None


def token_mixing(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float) -> torch.Tensor:
    """``[B, S, D]`` -> ``[B, S, D]``, with gradients where something asks for them."""
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, gate_up, down))
    return TokenMixing.apply(x, gate_up.contiguous(), down.contiguous(), eps, save)

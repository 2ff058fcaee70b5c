"""Token mixing out of the CPU library's kernels and the matrix products of PyTorch, over the transposed state.

Kept for the backward, per channel: x across the positions and the sum's other half (S each), gate_up (2 I), 1/rms.
"""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels.ops.add_rms_norm import cpu_kernels as norm
from hrm_kernels.ops.swiglu import cpu_kernels as swiglu


def _across(x: Tensor) -> Tensor:
    """``[B, S, D]`` -> ``[B D, S]``, a row per channel."""
    return x.transpose(1, 2).reshape(-1, x.shape[1]).contiguous()  # (of one row, or a transposed x, it is a view)


def _back(rows: Tensor, like: Tensor) -> Tensor:
    """``[B D, S]`` -> the shape ``[B, S, D]`` of ``like``."""
    batch, positions, dim = like.shape
    return rows.view(batch, dim, positions).transpose(1, 2).contiguous()


class _TokenMixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        rows = _across(x)
        hidden = torch.mm(rows, gate_up.t())
        mixed = torch.mm(swiglu.forward(hidden), down.t())
        out, rstd = norm.forward(rows, mixed, eps)
        ctx.save_for_backward(rows, hidden, mixed, rstd, gate_up, down)
        return _back(out, x)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        rows, hidden, mixed, rstd, gate_up, down = ctx.saved_tensors
        du = norm.backward(_across(dout), rows, mixed, rstd)
        dhidden = swiglu.backward(torch.mm(du, down), hidden)
        dx = torch.addmm(du, dhidden, gate_up)
        return _back(dx, dout), torch.mm(dhidden.t(), rows), torch.mm(du.t(), swiglu.forward(hidden)), None


def token_mixing(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """``[B, S, D]`` -> ``[B, S, D]``."""
    return _TokenMixing.apply(x, gate_up.contiguous(), down.contiguous(), eps)

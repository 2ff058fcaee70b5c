"""Token mixing with Triton launches and library matrix products, on the transposed state.

Saved for the backward, per channel: x over the positions and the sum before the norm (S each), gate_up (2 I), all in
the dtype of x, and 1/rms in float32.
"""

from typing import Any

import torch

from hrm_kernels.autodiff import first_order
from hrm_kernels.ops.add_rms_norm import triton_kernels as norm
from hrm_kernels.ops.swiglu import triton_kernels as swiglu
from hrm_kernels.ops.token_mixing import reference


class TokenMixing(torch.autograd.Function):
    """``apply(rows [B D, S], gate_up [2 I, S], down [S, I], eps, save)``, a row per channel."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float, save: bool
    ) -> torch.Tensor:
        hidden = rows @ gate_up.t()
        out, u, rstd = norm.forward(rows, swiglu.forward(hidden) @ down.t(), eps, save)
        if save:
            ctx.save_for_backward(rows, gate_up, down, hidden, u, rstd)
            ctx.eps = eps
        return out

    @staticmethod
    @first_order(lambda ctx: (reference.mix, (*ctx.saved_tensors[:3], ctx.eps)))
    def backward(ctx: Any, dout: torch.Tensor) -> Any:  # type: ignore[override]
        rows, gate_up, down, hidden, u, rstd = ctx.saved_tensors
        du = norm.backward(dout.contiguous(), u, rstd)
        dhidden, out = swiglu.backward(du @ down, hidden, True)
        ddown = du.t() @ out
        return du.addmm_(dhidden, gate_up), dhidden.t() @ rows, ddown, None, None  # in place: addmm copies du first


def token_mixing(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float) -> torch.Tensor:
    """``[B, S, D]`` -> ``[B, S, D]``; saves activations only if an argument needs a gradient."""
    if x.shape[1] == 0:  # nothing to compute
        return reference.token_mixing(x, gate_up, down, eps)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, gate_up, down))
    batch, positions, dim = x.shape
    rows = x.transpose(1, 2).reshape(batch * dim, positions).contiguous()
    out = TokenMixing.apply(rows, gate_up.contiguous(), down.contiguous(), eps, save)
    return out.view(batch, dim, positions).transpose(1, 2).contiguous()

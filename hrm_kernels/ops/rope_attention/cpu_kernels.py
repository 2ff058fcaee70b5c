"""The CPU library's kernels: one task a head, probabilities computed again in the backward from a log-sum-exp."""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher
from hrm_kernels.ops.rope_attention import reference


def table(values: Tensor | None) -> Tensor | None:
    """A RoPE table as the kernels read it."""
    return None if values is None else values.detach().float().contiguous()


@launcher(
    "cpu_rope_attention_forward(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads) -> (Tensor, Tensor)",
    lambda qkv, cos, sin, num_heads: (
        qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3),
        qkv.new_empty(qkv.shape[0], num_heads, qkv.shape[1], dtype=torch.float32),
    ),
)
def forward(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int) -> tuple[Tensor, Tensor]:
    """``out [B, S, H d]`` and the log-sum-exp of the scores ``[B, H, S]``."""
    batch, positions, columns = qkv.shape
    out = qkv.new_empty(batch, positions, columns // 3)
    lse = qkv.new_empty(batch, num_heads, positions, dtype=torch.float32)
    native.load("cpu").module.rope_attention_forward(
        qkv.detach(), table(cos), table(sin), out, lse, num_heads, torch.get_num_threads()
    )
    return out, lse


@launcher(
    "cpu_rope_attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor? cos, Tensor? sin, "
    "int num_heads) -> Tensor",
    lambda dout, qkv, out, lse, cos, sin, num_heads: qkv.new_empty(qkv.shape),
)
def backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int
) -> Tensor:
    dqkv = torch.empty_like(qkv)
    native.load("cpu").module.rope_attention_backward(
        dout.detach(),
        qkv.detach(),
        out.detach(),
        lse,
        table(cos),
        table(sin),
        dqkv,
        num_heads,
        torch.get_num_threads(),
    )
    return dqkv


class _RoPEAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int
    ) -> Tensor:
        out, lse = forward(qkv, cos, sin, num_heads)
        ctx.save_for_backward(qkv, cos, sin, out, lse)
        ctx.num_heads = num_heads
        return out

    @staticmethod
    @first_order(lambda ctx: (reference.rope_attention, (*ctx.saved_tensors[:3], ctx.num_heads)))
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        qkv, cos, sin, out, lse = ctx.saved_tensors
        return backward(dout.contiguous(), qkv, out, lse, cos, sin, ctx.num_heads), None, None, None


def rope_attention(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int) -> Tensor:
    return _RoPEAttention.apply(qkv.contiguous(), cos, sin, num_heads)

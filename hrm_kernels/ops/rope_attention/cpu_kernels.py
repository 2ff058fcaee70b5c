"""The kernels of the CPU library: one task per head. The backward computes probabilities from a log-sum-exp."""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.rope_attention.reference import again


def table(values: Tensor | None) -> Tensor | None:
    """A RoPE table as the kernels read it."""
    return None if values is None else values.detach().float().contiguous()


def _outputs(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    batch, positions, columns = qkv.shape
    return (
        qkv.new_empty(batch, positions, columns // 3),
        qkv.new_empty(batch, num_heads, positions, dtype=torch.float32),
    )


@launcher(
    "cpu_rope_attention_forward(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads) -> (Tensor, Tensor)",
    lambda qkv, heads: _outputs(qkv, heads.num_heads),
    grouped=(1, Heads),
)
def forward(qkv: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """``out [B, S, H d]`` and the log-sum-exp of the scores ``[B, H, S]``."""
    out, lse = _outputs(qkv, heads.num_heads)
    native.load("cpu").module.rope_attention_forward(
        qkv.detach(), table(heads.cos), table(heads.sin), out, lse, heads.num_heads, torch.get_num_threads()
    )
    return out, lse


@launcher(
    "cpu_rope_attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor? cos, Tensor? sin, "
    "int num_heads) -> Tensor",
    lambda dout, qkv, out, lse, heads: qkv.new_empty(qkv.shape),
    grouped=(4, Heads),
)
def backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, heads: Heads) -> Tensor:
    """The gradient of qkv, ``[B, S, 3 H d]``."""
    dqkv = torch.empty_like(qkv)
    native.load("cpu").module.rope_attention_backward(
        dout.detach(),
        qkv.detach(),
        out.detach(),
        lse,
        table(heads.cos),
        table(heads.sin),
        dqkv,
        heads.num_heads,
        torch.get_num_threads(),
    )
    return dqkv


class _RoPEAttention(torch.autograd.Function):
    """``apply(qkv, *heads)``: the tables are saved as tensors, so that writing to them is noticed."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, *heads: Any) -> Tensor:  # type: ignore[override]
        cos, sin, ctx.num_heads = heads
        out, lse = forward(qkv, Heads(*heads))
        ctx.save_for_backward(qkv, cos, sin, out, lse)
        return out

    @staticmethod
    @first_order(again)
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        qkv, cos, sin, out, lse = ctx.saved_tensors
        dqkv = backward(dout.contiguous(), qkv, out, lse, Heads(cos, sin, ctx.num_heads))
        return dqkv, None, None, None


def rope_attention(qkv: Tensor, heads: Heads) -> Tensor:
    return _RoPEAttention.apply(qkv.contiguous(), *heads)

from typing import Any

import torch

from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_heads, check_shape, check_tables, check_tensor
from hrm_kernels.ops.rope_attention import cpu_kernels, cuda_kernels, reference
from hrm_kernels.tuning.table import cuda_is_unproven


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, num_heads: int, save: bool
    ) -> torch.Tensor:
        from hrm_kernels.ops.rope_attention import triton_kernels

        out, lse = triton_kernels.forward(qkv, cos, sin, num_heads, save)
        # the long backward reads out, which the next op (a product with o) keeps anyway
        ctx.save_for_backward(qkv, cos, sin, lse, None if triton_kernels.is_short(qkv, num_heads) else out)
        ctx.num_heads = num_heads
        return out

    @staticmethod
    @first_order(lambda ctx: (reference.rope_attention, (*ctx.saved_tensors[:3], ctx.num_heads)))
    def backward(ctx: Any, dout: torch.Tensor) -> Any:  # type: ignore[override]
        from hrm_kernels.ops.rope_attention import triton_kernels

        dqkv = triton_kernels.backward(dout.contiguous(), *ctx.saved_tensors, ctx.num_heads)
        return dqkv, None, None, None, None


def _triton(qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, num_heads: int) -> torch.Tensor:
    save = torch.is_grad_enabled() and qkv.requires_grad
    if cos is not None and sin is not None:
        cos, sin = cos.contiguous(), sin.contiguous()
    return _Triton.apply(qkv.contiguous(), cos, sin, num_heads, save)


HEAD_DIMS = (64, 32, 128)
"""Widths of heads that the Triton kernels are for, the published one first."""


def triton_cannot_attend(head_dim: int, dtype: torch.dtype) -> str | None:
    """None where there are Triton kernels for heads of this width and dtype, else why not."""
    if head_dim not in HEAD_DIMS:
        return f"its attention is for head_dim 32, 64 and 128, not {head_dim}"
    if head_dim == 128 and dtype is torch.float32:
        return "its attention has no float32 kernels for head_dim 128, whose tiles don't fit into registers"
    return None


def _triton_cannot_serve(
    qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, num_heads: int
) -> str | None:
    reason = triton_cannot_attend(qkv.shape[-1] // (3 * num_heads), qkv.dtype)
    if reason is not None:
        return reason
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None and table.dtype is not torch.float32:
            return f"its kernels read float32 tables, and {name} is {table.dtype}; convert it with .float()"
        if table is not None and table.requires_grad and torch.is_grad_enabled():
            return f"its kernels have no gradient for {name}; detach it"
    return triton_cannot_run(qkv)


def tables_differentiate(cos: torch.Tensor | None, sin: torch.Tensor | None) -> str | None:
    """Why CPU kernels cannot serve these tables: they have no gradient for them; None where nobody asks for one."""
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None and table.requires_grad and torch.is_grad_enabled():
            return f"its kernels have no gradient for {name}; detach it"
    return None


_op = Op(
    "rope_attention",
    "(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads) -> Tensor",
    {
        "reference": Backend(reference.rope_attention),
        "cuda": Backend(
            cuda_kernels.rope_attention, cuda_kernels.unsupported, passed_over=cuda_is_unproven("rope_attention")
        ),
        "triton": Backend(_triton, _triton_cannot_serve),
        "cpu": Backend(
            cpu_kernels.rope_attention,
            lambda qkv, cos, sin, num_heads: tables_differentiate(cos, sin) or cpu_cannot_run(qkv),
        ),
    },
    lowered=1,
)


def rope_attention(
    qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, num_heads: int
) -> torch.Tensor:
    """Full (not causal) self-attention over packed projections, with rotary positions on q and k.

    RoPE is the "rotate half" form, computed in the dtype of the tables (float32): element i < d/2 of a head is
    paired with i + d/2. The scores are scaled by 1/sqrt(d). Under ``torch.autocast`` it runs in the
    dtype of that, as ``scaled_dot_product_attention`` does.

    Args:
        qkv: ``[B, S, 3 H d]``, float32, bfloat16 or float16; columns are ``[q heads | k heads | v heads]``.
        cos, sin: ``[>= S, d]`` float32, row s for position s (:func:`hrm_kernels.nn.rope_tables`), or None for both
            to leave the rotation out.
        num_heads: H.

    Returns:
        ``[B, S, H d]`` in the dtype of qkv.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: RoPE, arXiv 2104.09864; HRM (arXiv 2506.21734), section 2.
    """
    (qkv,) = _op.under_autocast(qkv)
    check_tensor("rope_attention", "qkv", qkv)
    check_shape("rope_attention", "qkv", qkv, (None, None, None), "[B, S, 3 H d]")
    check_heads("rope_attention", "qkv", qkv.shape[-1], num_heads, 3)
    check_tables("rope_attention", cos, sin, qkv.shape[1], qkv.shape[2] // (3 * num_heads), qkv.device)
    return _op(qkv.contiguous(), cos, sin, int(num_heads))

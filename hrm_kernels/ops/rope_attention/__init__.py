from typing import Any

import torch

from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_heads, check_tables
from hrm_kernels.ops.rope_attention import cpu_kernels, cuda_kernels, reference
from hrm_kernels.ops.rope_attention.heads import (
    Heads,
    gpu_cannot_read_tables,
    tables_need_gradients,
    triton_cannot_attend,
)
from hrm_kernels.ops.rope_attention.spec import SPEC
from hrm_kernels.tuning.table import cuda_is_unproven


class _Triton(torch.autograd.Function):
    """``apply(qkv, *heads, save)``: the tables are saved as tensors, so that writing to them is noticed."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, *heads_and_save: Any) -> torch.Tensor:  # type: ignore[override]
        from hrm_kernels.ops.rope_attention import triton_kernels

        *heads, save = heads_and_save
        cos, sin, ctx.num_heads = heads
        out, lse = triton_kernels.forward(qkv, Heads(*heads), save)
        # the long backward reads out, which the next op (a product with o) keeps anyway
        ctx.save_for_backward(qkv, cos, sin, lse, None if triton_kernels.is_short(qkv, ctx.num_heads) else out)
        return out

    @staticmethod
    @first_order(reference.again)
    def backward(ctx: Any, dout: torch.Tensor) -> Any:  # type: ignore[override]
        from hrm_kernels.ops.rope_attention import triton_kernels

        qkv, cos, sin, lse, out = ctx.saved_tensors
        dqkv = triton_kernels.backward(dout.contiguous(), qkv, lse, out, Heads(cos, sin, ctx.num_heads))
        return dqkv, None, None, None, None


def _triton(qkv: torch.Tensor, heads: Heads) -> torch.Tensor:
    save = torch.is_grad_enabled() and qkv.requires_grad
    return _Triton.apply(qkv.contiguous(), *heads.contiguous(), save)


def _triton_cannot_serve(qkv: torch.Tensor, heads: Heads) -> str | None:
    return (
        triton_cannot_attend(qkv.shape[-1] // (3 * heads.num_heads), qkv.dtype)
        or gpu_cannot_read_tables(heads)
        or triton_cannot_run(qkv)
    )


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.rope_attention),
        "cuda": Backend(
            cuda_kernels.rope_attention, cuda_kernels.unsupported, passed_over=cuda_is_unproven("rope_attention")
        ),
        "triton": Backend(_triton, _triton_cannot_serve),
        "cpu": Backend(
            cpu_kernels.rope_attention, lambda qkv, heads: tables_need_gradients(heads) or cpu_cannot_run(qkv)
        ),
    },
    unflatten=lambda qkv, *heads: (qkv, Heads(*heads)),
)


@_op.public
def rope_attention(
    qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, num_heads: int
) -> torch.Tensor:
    """Full (not causal) self-attention over packed projections, with rotary positions on q and k.

    RoPE is the "rotate half" form, computed in the dtype of the tables (float32): element i < d/2 of a head is
    paired with i + d/2. The scores are scaled by 1/sqrt(d). Under ``torch.autocast`` it runs in autocast's dtype, as
    ``scaled_dot_product_attention`` does.

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
    SPEC.check(qkv)
    check_heads(SPEC.name, "qkv", qkv.shape[-1], num_heads, 3)
    check_tables(SPEC.name, cos, sin, qkv.shape[1], qkv.shape[2] // (3 * num_heads), qkv.device)
    return _op(qkv.contiguous(), Heads(cos, sin, int(num_heads)))

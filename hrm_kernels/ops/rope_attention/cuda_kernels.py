"""The cuda backend: short attention, one head of one row per thread block (csrc/cuda/rope_attention.cu).

Backward needs qkv and ``lse[b, h, m] = log2 sum_n 2^scores[m, n]`` (the scores with a factor log2(e)), not the result.
"""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import cuda_cannot_run, launcher
from hrm_kernels.ops.rope_attention.heads import Heads, gpu_cannot_read_tables
from hrm_kernels.ops.rope_attention.reference import again

HEAD_DIMS = (32, 64, 128)
MOST_POSITIONS = 128


def unsupported(qkv: Tensor, heads: Heads) -> str | None:
    """Why the kernels cannot serve the call; None where they can."""
    if qkv.dtype not in (torch.bfloat16, torch.float16):
        return f"the cuda kernels are for bfloat16 and float16, not {str(qkv.dtype).removeprefix('torch.')}"
    batch, positions, columns = qkv.shape
    if not (batch and 1 <= positions <= MOST_POSITIONS):
        return f"the cuda kernels are for rows of 1 to {MOST_POSITIONS} positions, not {batch} of {positions}"
    head_dim = columns // (3 * heads.num_heads)
    if head_dim not in HEAD_DIMS:
        return f"the cuda kernels are for head_dim 32, 64 and 128, not {head_dim}"
    return gpu_cannot_read_tables(heads, "the cuda kernels") or cuda_cannot_run(qkv)


def _ready(tensor: Tensor, alignment: int = 16) -> Tensor:
    """A tensor as the kernels read it: contiguous and aligned (a view may not be)."""
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.data_ptr() % alignment else tensor


def _tables(heads: Heads) -> list[Tensor | None]:
    return [None if table is None else _ready(table, 8) for table in (heads.cos, heads.sin)]


def _outputs(qkv: Tensor, num_heads: int, save: bool) -> tuple[Tensor, Tensor]:
    batch, positions, columns = qkv.shape
    lse = (batch, num_heads, positions) if save else (0,)
    return qkv.new_empty(batch, positions, columns // 3), qkv.new_empty(lse, dtype=torch.float32)


@launcher(
    "cuda_rope_attention(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads, bool save) -> (Tensor, Tensor)",
    lambda qkv, heads, save: _outputs(qkv, heads.num_heads, save),
    grouped=(1, Heads),
)
def forward(qkv: Tensor, heads: Heads, save: bool) -> tuple[Tensor, Tensor]:
    """``out [B, S, H d]`` and lse ``[B, H, S]`` float32, which is empty without ``save``."""
    out, lse = _outputs(qkv, heads.num_heads, save)
    native.load("cuda").module.rope_attention_forward(
        _ready(qkv), *_tables(heads), heads.num_heads, out, lse if save else None
    )
    return out, lse


@launcher(
    "cuda_rope_attention_backward(Tensor dout, Tensor qkv, Tensor lse, Tensor? cos, Tensor? sin, int num_heads)"
    " -> Tensor",
    lambda dout, qkv, lse, heads: qkv.new_empty(qkv.shape),
    grouped=(3, Heads),
)
def backward(dout: Tensor, qkv: Tensor, lse: Tensor, heads: Heads) -> Tensor:
    """The gradient of qkv, ``[B, S, 3 H d]``."""
    dqkv = qkv.new_empty(qkv.shape)
    native.load("cuda").module.rope_attention_backward(
        _ready(dout), _ready(qkv), lse, *_tables(heads), heads.num_heads, dqkv
    )
    return dqkv


class _RoPEAttention(torch.autograd.Function):
    """``apply(qkv, *heads, save)``: the tables are saved as tensors, so that writing to them is noticed."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, *heads_and_save: Any) -> Tensor:  # type: ignore[override]
        *heads, save = heads_and_save
        cos, sin, ctx.num_heads = heads
        out, lse = forward(qkv, Heads(*heads), save)
        ctx.save_for_backward(qkv, cos, sin, lse)
        return out

    @staticmethod
    @first_order(again)
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        qkv, cos, sin, lse = ctx.saved_tensors
        return backward(dout, qkv, lse, Heads(cos, sin, ctx.num_heads)), None, None, None, None


def rope_attention(qkv: Tensor, heads: Heads) -> Tensor:
    return _RoPEAttention.apply(qkv, *heads, torch.is_grad_enabled() and qkv.requires_grad)

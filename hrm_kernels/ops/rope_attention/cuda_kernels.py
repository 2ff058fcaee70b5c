"""The cuda backend: short attention, a head of a row to a thread block of csrc/cuda/rope_attention.cu.

Backward needs qkv and ``lse[b, h, m] = log2 sum_n 2^scores[m, n]`` (the scores with a factor log2(e)), not the result.
"""

from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import cuda_cannot_run, launcher
from hrm_kernels.ops.rope_attention import reference

HEAD_DIMS = (32, 64, 128)
MOST_POSITIONS = 128


def unsupported(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int) -> str | None:
    """None where the kernels can serve the call, else why not."""
    if qkv.dtype not in (torch.bfloat16, torch.float16):
        return f"the cuda kernels are for bfloat16 and float16, not {str(qkv.dtype).removeprefix('torch.')}"
    batch, positions, columns = qkv.shape
    if not (batch and 1 <= positions <= MOST_POSITIONS):
        return f"the cuda kernels are for rows of 1 to {MOST_POSITIONS} positions, not {batch} of {positions}"
    if columns // (3 * num_heads) not in HEAD_DIMS:
        return f"the cuda kernels are for head_dim 32, 64 and 128, not {columns // (3 * num_heads)}"
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None and table.dtype is not torch.float32:
            return f"the cuda kernels read float32 tables, and {name} is {table.dtype}; convert it with .float()"
        if table is not None and table.requires_grad and torch.is_grad_enabled():
            return f"the cuda kernels have no gradient for {name}; detach it"
    return cuda_cannot_run(qkv)


def _ready(tensor: Tensor, alignment: int = 16) -> Tensor:
    """As the kernels read it: contiguous, aligned (which a view may not be)."""
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.data_ptr() % alignment else tensor


def _tables(*tables: Tensor | None) -> list[Tensor | None]:
    return [None if table is None else _ready(table, 8) for table in tables]


def _outputs(qkv: Tensor, num_heads: int, save: bool) -> tuple[Tensor, Tensor]:
    batch, positions, columns = qkv.shape
    lse = (batch, num_heads, positions) if save else (0,)
    return qkv.new_empty(batch, positions, columns // 3), qkv.new_empty(lse, dtype=torch.float32)


@launcher(
    "cuda_rope_attention(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads, bool save) -> (Tensor, Tensor)",
    lambda qkv, cos, sin, num_heads, save: _outputs(qkv, num_heads, save),
)
def forward(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int, save: bool) -> tuple[Tensor, Tensor]:
    """``out [B, S, H d]`` and lse ``[B, H, S]`` float32, which is empty without ``save``."""
    out, lse = _outputs(qkv, num_heads, save)
    native.load("cuda").module.rope_attention_forward(
        _ready(qkv), *_tables(cos, sin), num_heads, out, lse if save else None
    )
    return out, lse


@launcher(
    "cuda_rope_attention_backward(Tensor dout, Tensor qkv, Tensor lse, Tensor? cos, Tensor? sin, int num_heads)"
    " -> Tensor",
    lambda dout, qkv, lse, cos, sin, num_heads: qkv.new_empty(qkv.shape),
)
def backward(dout: Tensor, qkv: Tensor, lse: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int) -> Tensor:
    """The gradient of qkv, ``[B, S, 3 H d]``."""
    dqkv = qkv.new_empty(qkv.shape)
    native.load("cuda").module.rope_attention_backward(
        _ready(dout), _ready(qkv), lse, *_tables(cos, sin), num_heads, dqkv
    )
    return dqkv


class _RoPEAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int, save: bool
    ) -> Tensor:
        out, lse = forward(qkv, cos, sin, num_heads, save)
        ctx.save_for_backward(qkv, cos, sin, lse)
        ctx.num_heads = num_heads
        return out

    @staticmethod
    @first_order(lambda ctx: (reference.rope_attention, (*ctx.saved_tensors[:3], ctx.num_heads)))
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        qkv, cos, sin, lse = ctx.saved_tensors
        return backward(dout, qkv, lse, cos, sin, ctx.num_heads), None, None, None, None


def rope_attention(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int) -> Tensor:
    return _RoPEAttention.apply(qkv, cos, sin, num_heads, torch.is_grad_enabled() and qkv.requires_grad)

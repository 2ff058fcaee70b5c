"""Attention inside a pass of blocks on a GPU: each way by the kernels that the tuning table found faster there.

Long rows without gradients may be other libraries' (:mod:`library_kernels`). ``cuda`` and ``triton`` save the same
log-sum-exp, so the forward of one and the backward of the other fit together.
"""

import torch

from hrm_kernels.backends import is_traced
from hrm_kernels.ops.rope_attention import cuda_kernels, library_kernels, triton_kernels
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.tuning.table import cuda_is_unproven

_unproven = cuda_is_unproven("rope_attention")
_backward_is_unproven = cuda_is_unproven("rope_attention_backward")


def forward(qkv: torch.Tensor, heads: Heads, save: bool, automatic: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``(out, lse)`` of contiguous arguments; lse is empty without ``save``. Not ``automatic``: by Triton."""
    if automatic and _unproven(qkv) is None and cuda_kernels.unsupported(qkv, heads) is None:
        return cuda_kernels.forward(qkv, heads, save)
    if automatic and not save and not is_traced():  # other libraries don't save our log-sum-exp
        library = library_kernels.chosen(qkv)
        if library is not None:
            return library_kernels.forward(library, qkv, heads), qkv.new_empty(0, dtype=torch.float32)
    return triton_kernels.forward(qkv, heads, save)


def backward(
    dout: torch.Tensor, qkv: torch.Tensor, lse: torch.Tensor, out: torch.Tensor, heads: Heads, automatic: bool
) -> torch.Tensor:
    """The gradient of qkv, from what :func:`forward` returned."""
    proven = automatic and (_unproven(qkv) is None or _backward_is_unproven(qkv) is None)
    if proven and cuda_kernels.unsupported(qkv, heads) is None:
        return cuda_kernels.backward(dout, qkv, lse, heads)
    return triton_kernels.backward(dout, qkv, lse, out, heads)

import torch

from hrm_kernels.backends import Backend, Op
from hrm_kernels.checks import check_heads, check_shape, check_tables, check_tensor
from hrm_kernels.ops.rope_attention import reference

_op = Op(
    "rope_attention",
    "(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads) -> Tensor",
    {"reference": Backend(reference.rope_attention)},
)


def rope_attention(
    qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, num_heads: int
) -> torch.Tensor:
    """Full (not causal) self-attention over packed projections, with rotary positions on q and k.

    RoPE is the "rotate half" form, computed in the dtype of the tables (float32): element i < d/2 of a head is
    paired with i + d/2. The scores are scaled by 1/sqrt(d).

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
    check_tensor("rope_attention", "qkv", qkv)
    check_shape("rope_attention", "qkv", qkv, (None, None, None), "[B, S, 3 H d]")
    check_heads("rope_attention", "qkv", qkv.shape[-1], num_heads, 3)
    check_tables("rope_attention", cos, sin, qkv.shape[1], qkv.shape[2] // (3 * num_heads), qkv.device)
    return _op(qkv.contiguous(), cos, sin, num_heads)

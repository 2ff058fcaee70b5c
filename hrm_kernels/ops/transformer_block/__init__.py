from collections.abc import Sequence

import torch

from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_eps, check_layers
from hrm_kernels.ops.rope_attention.heads import Heads, tables_need_gradients, triton_cannot_attend
from hrm_kernels.ops.transformer_block import pre_norm, reference
from hrm_kernels.ops.transformer_block.spec import SPEC
from hrm_kernels.ops.transformer_block.weights import (
    BlockWeights,
    Layer,
    MixingBlockWeights,
    PreNormBlockWeights,
    by_block,
)

__all__ = ["BlockWeights", "Layer", "MixingBlockWeights", "PreNormBlockWeights", "transformer_block"]


def triton_cannot_run_blocks(x: torch.Tensor, layers: Sequence[Layer], heads: Heads) -> str | None:
    """Why the triton backend cannot run these blocks on x; None where it can."""
    if heads.mixing:
        return triton_cannot_run(x)
    for weights in layers:
        reason = triton_cannot_attend(weights[0].shape[0] // (3 * heads.num_heads), x.dtype)
        if reason is not None:
            return reason
    return tables_need_gradients(heads) or triton_cannot_run(x)


def cpu_cannot_run_blocks(x: torch.Tensor, layers: Sequence[Layer], heads: Heads) -> str | None:
    """Why the cpu backend cannot run these blocks on x; None where it can."""
    for weights in layers:
        if (weights[0].shape, weights.down.shape) != (layers[0][0].shape, layers[0].down.shape):
            return "its kernels run blocks of equal sizes only"
    return tables_need_gradients(heads) or cpu_cannot_run(x)


def _triton(x: torch.Tensor, weights: Layer, heads: Heads, eps: float, recompute: bool = False) -> torch.Tensor:
    if isinstance(weights, PreNormBlockWeights):
        return pre_norm.block(x, weights, heads, eps, recompute)
    from hrm_kernels.ops.transformer_block import triton_block

    return triton_block.blocks(x, list(weights), heads, eps, recompute)


def _cpu(x: torch.Tensor, weights: Layer, heads: Heads, eps: float, recompute: bool = False) -> torch.Tensor:
    if isinstance(weights, PreNormBlockWeights):
        return pre_norm.block(x, weights, heads, eps, recompute)
    from hrm_kernels.ops.transformer_block import cpu_block

    return cpu_block.blocks(x, None, list(weights), heads, eps, recompute)


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.transformer_block),
        "triton": Backend(_triton, lambda x, weights, heads, *rest: triton_cannot_run_blocks(x, [weights], heads)),
        "cpu": Backend(_cpu, lambda x, weights, heads, *rest: cpu_cannot_run_blocks(x, [weights], heads)),
    },
    unflatten=lambda x, weights, cos, sin, num_heads, *rest: (
        (x, by_block(weights, num_heads)[0], Heads(cos, sin, num_heads), *rest)
    ),
)


@_op.public
def transformer_block(
    x: torch.Tensor,
    weights: Layer,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float = 1e-5,
    recompute: bool = False,
) -> torch.Tensor:
    """One block: attention or token mixing, then SwiGLU, each added to its input and normed.

    ``x = rms_norm(x + o(attention(qkv(x))))``, or with :class:`hrm_kernels.MixingBlockWeights`
    ``x = token_mixing(x, mix_gate_up, mix_down)``; then ``x = rms_norm(x + down(swiglu(gate_up(x))))``. With
    :class:`hrm_kernels.PreNormBlockWeights` the norms come first, and the sums have scales. Under ``torch.autocast`` it
    runs in autocast's dtype, as products do.

    Args:
        x: ``[B, S, D]``, float32, bfloat16 or float16.
        weights: the block's weights, in the dtype of x.
        cos, sin: RoPE tables as for :func:`hrm_kernels.rope_attention`, or None for both; None for token mixing.
        num_heads: H; 0 for token mixing.
        eps: of both norms.
        recompute: save only x for the backward, which computes the rest again.

    Returns:
        ``[B, S, D]`` in the dtype of x.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: HRM (arXiv 2506.21734), section 2; token mixing: TRM (arXiv 2510.04871), section 4.
    """
    x, weights = _op.under_autocast(x, weights)
    SPEC.check(x)
    check_layers(SPEC.name, "weights", [weights], "x", x, num_heads, cos, sin)
    check_eps(SPEC.name, eps)
    return _op(x, by_block(weights, num_heads)[0], Heads(cos, sin, int(num_heads)), eps, recompute)

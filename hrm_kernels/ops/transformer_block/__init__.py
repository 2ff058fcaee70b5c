from collections.abc import Sequence
from typing import NamedTuple

import torch

from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_eps, check_layers, check_state
from hrm_kernels.ops.rope_attention import tables_differentiate, triton_cannot_attend
from hrm_kernels.ops.transformer_block import reference


class BlockWeights(NamedTuple):
    """The matrices of one block, ``[out, in]`` as in ``nn.Linear``.

    Attributes:
        qkv: ``[3 H d, D]``, rows ``[q heads | k heads | v heads]``.
        o: ``[D, H d]``.
        gate_up: ``[2 I, D]``, the gate first.
        down: ``[D, I]``.
    """

    qkv: torch.Tensor
    o: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def triton_cannot_run_blocks(x: torch.Tensor, layers: Sequence[BlockWeights], num_heads: int) -> str | None:
    """None where the triton backend can run these blocks on x, else why not."""
    for weights in layers:
        reason = triton_cannot_attend(weights.qkv.shape[0] // (3 * num_heads), x.dtype)
        if reason is not None:
            return reason
    return triton_cannot_run(x)


def cpu_cannot_run_blocks(
    x: torch.Tensor, layers: Sequence[BlockWeights], cos: torch.Tensor | None, sin: torch.Tensor | None
) -> str | None:
    """None where the cpu backend can run these blocks on x, else why not."""
    for weights in layers:
        if (weights.qkv.shape, weights.down.shape) != (layers[0].qkv.shape, layers[0].down.shape):
            return "its kernels run blocks of equal sizes only"
    return tables_differentiate(cos, sin) or cpu_cannot_run(x)


def _triton(
    x: torch.Tensor,
    weights: BlockWeights,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
) -> torch.Tensor:
    from hrm_kernels.ops.transformer_block.triton_block import blocks

    return blocks(x, list(weights), cos, sin, num_heads, eps, recompute)


def _cpu(
    x: torch.Tensor,
    weights: BlockWeights,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
) -> torch.Tensor:
    from hrm_kernels.ops.transformer_block.cpu_block import blocks

    return blocks(x, None, list(weights), cos, sin, num_heads, eps, recompute)


_op = Op(
    "transformer_block",
    "(Tensor x, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, float eps, bool recompute=False) -> Tensor",
    {
        "reference": Backend(reference.transformer_block),
        "triton": Backend(
            _triton,
            lambda x, weights, cos, sin, num_heads, *rest: triton_cannot_run_blocks(x, [weights], num_heads),
        ),
        "cpu": Backend(_cpu, lambda x, weights, cos, sin, *rest: cpu_cannot_run_blocks(x, [weights], cos, sin)),
    },
    unflatten=lambda x, weights, *rest: (x, BlockWeights(*weights), *rest),
    lowered=2,
)


def transformer_block(
    x: torch.Tensor,
    weights: BlockWeights,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float = 1e-5,
    recompute: bool = False,
) -> torch.Tensor:
    """One post-norm block: attention, then SwiGLU, each added to its input and normed.

    ``x = rms_norm(x + o(attention(qkv(x))))``, then ``x = rms_norm(x + down(swiglu(gate_up(x))))``.
    Under ``torch.autocast`` it runs in the dtype of that, as products do.

    Args:
        x: ``[B, S, D]``, float32, bfloat16 or float16.
        weights: the block's matrices, in the dtype of x.
        cos, sin: RoPE tables as for :func:`hrm_kernels.rope_attention`, or None for both.
        num_heads: H.
        eps: of both norms.
        recompute: keep only x for the backward, and compute the rest again there.

    Returns:
        ``[B, S, D]`` in the dtype of x.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: HRM (arXiv 2506.21734), section 2.
    """
    x, weights = _op.under_autocast(x, weights)
    check_state("transformer_block", "x", x)
    check_layers("transformer_block", "weights", [weights], "x", x, num_heads, cos, sin)
    check_eps("transformer_block", eps)
    return _op(x, BlockWeights(*weights), cos, sin, int(num_heads), eps, recompute)

from collections.abc import Sequence

import torch

from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_count, check_eps
from hrm_kernels.ops.add_rms_norm import add_rms_norm
from hrm_kernels.ops.conv_cycles import reference
from hrm_kernels.ops.conv_cycles.spec import SPEC
from hrm_kernels.ops.conv_cycles.weights import ConvBlockWeights, blocks_of, check_conv_layers
from hrm_kernels.ops.conv_swiglu import conv_swiglu
from hrm_kernels.ops.linear import linear
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.rope_attention.heads import Heads, gpu_cannot_read_tables, triton_cannot_attend

__all__ = ["ConvBlockWeights", "conv_cycles"]


def _triton(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[ConvBlockWeights],
    heads: Heads,
    cycles: int,
    eps: float,
) -> torch.Tensor:
    """By the ops of a block, each on its Triton kernels."""

    def block(x: torch.Tensor, weights: ConvBlockWeights) -> torch.Tensor:
        qkv, o, gate_up, down, conv, conv_bias = weights
        x = add_rms_norm(x, linear(rope_attention(linear(x, qkv), *heads), o), eps)
        return add_rms_norm(x, linear(conv_swiglu(linear(x, gate_up), conv, conv_bias), down), eps)

    return reference.run_cycles(z, injection, layers, cycles, block)


def _triton_cannot_run(
    z: torch.Tensor, injection: torch.Tensor, layers: Sequence[ConvBlockWeights], heads: Heads, *rest: object
) -> str | None:
    for weights in layers:
        reason = triton_cannot_attend(weights.qkv.shape[0] // (3 * heads.num_heads), z.dtype)
        if reason is not None:
            return reason
    return gpu_cannot_read_tables(heads) or triton_cannot_run(z)


def _cpu(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[ConvBlockWeights],
    heads: Heads,
    cycles: int,
    eps: float,
) -> torch.Tensor:
    from hrm_kernels.ops.conv_cycles.cpu_kernels import run

    flat = [weight for block in layers for weight in block]
    return run(z, injection, flat, heads, cycles, eps)


def _cpu_cannot_run(
    z: torch.Tensor, injection: torch.Tensor, layers: Sequence[ConvBlockWeights], *rest: object
) -> str | None:
    if any((one.qkv.shape, one.down.shape) != (layers[0].qkv.shape, layers[0].down.shape) for one in layers):
        return "its kernels run blocks of equal sizes only"
    return cpu_cannot_run(z)


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.conv_cycles),
        "triton": Backend(_triton, _triton_cannot_run),
        "cpu": Backend(_cpu, _cpu_cannot_run),
    },
    unflatten=lambda z, injection, layers, cos, sin, num_heads, cycles, eps: (
        (z, injection, blocks_of(layers), Heads(cos, sin, num_heads), cycles, eps)
    ),
)


@_op.public
def conv_cycles(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[ConvBlockWeights],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    cycles: int,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Updates of a URM's state: ``cycles`` times ``z = blocks(z + injection)``, with gradients through all of them.

    A block is ``x = rms_norm(x + o(attention(qkv(x))))``, then ``x = rms_norm(x + down(conv_swiglu(gate_up(x))))`` with
    :func:`hrm_kernels.conv_swiglu`. Call it under ``torch.no_grad()`` for the updates of a segment without gradients,
    then once for those with. Under ``torch.autocast`` it runs in autocast's dtype, as products do.

    Args:
        z: ``[B, S, D]`` state, float32, bfloat16 or float16; it is not written to.
        injection: ``[B, S, D]`` input embedding, added before each update.
        layers: the blocks' weights, :class:`hrm_kernels.ConvBlockWeights` in the dtype of z.
        cos, sin: RoPE tables as for :func:`hrm_kernels.rope_attention`, or None for both.
        num_heads: H.
        cycles: number of updates, >= 1.
        eps: of the norms.

    Returns:
        ``[B, S, D]`` in the dtype of z.

    Raises:
        TypeError, ValueError: a dtype, device, shape or number does not fit.

    Source: URM (arXiv 2512.14693).
    """
    z, injection, layers = _op.under_autocast(z, injection, layers)
    SPEC.check(z, injection)
    check_conv_layers(SPEC.name, layers, z, num_heads, cos, sin)
    check_count(SPEC.name, "cycles", cycles)
    check_eps(SPEC.name, eps)
    return _op(z, injection, blocks_of(layers), Heads(cos, sin, int(num_heads)), int(cycles), eps)

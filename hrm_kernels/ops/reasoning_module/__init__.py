from collections.abc import Sequence
from typing import Any

import torch

from hrm_kernels.backends import Backend, Op
from hrm_kernels.checks import check_eps, check_layers
from hrm_kernels.damping import Damping, as_damping, check_damping, damp
from hrm_kernels.ops.reasoning_module import cuda_kernels, reference
from hrm_kernels.ops.reasoning_module.spec import SPEC
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block import cpu_cannot_run_blocks, pre_norm, triton_cannot_run_blocks
from hrm_kernels.ops.transformer_block.weights import Layer, PreNormBlockWeights, flat, layers_of


def _triton(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    heads: Heads,
    eps: float,
    recompute: bool = False,
    damping: Damping | None = None,
) -> torch.Tensor:
    from hrm_kernels.ops.reasoning_module import triton_kernels
    from hrm_kernels.ops.transformer_block import triton_block

    if isinstance(layers[0], PreNormBlockWeights):
        updated = pre_norm.module(z, injection, layers, heads, eps, recompute)
        return triton_kernels.damp(z, updated, damping)
    return triton_kernels.damp(z, triton_block.blocks(z + injection, flat(layers), heads, eps, recompute), damping)


def _cpu(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    heads: Heads,
    eps: float,
    recompute: bool = False,
    damping: Damping | None = None,
) -> torch.Tensor:
    from hrm_kernels.ops.transformer_block import cpu_block

    if isinstance(layers[0], PreNormBlockWeights):
        return damp(z, pre_norm.module(z, injection, layers, heads, eps, recompute), damping)
    return cpu_block.blocks(z, injection, flat(layers), heads, eps, recompute, damping)


def _unflatten(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
    *damping: Any,
) -> tuple[Any, ...]:
    heads = Heads(cos, sin, num_heads)
    return z, injection, layers_of(layers, num_heads), heads, eps, recompute, as_damping(*damping)


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.reasoning_module),
        "triton": Backend(
            _triton, lambda z, injection, layers, heads, *rest: triton_cannot_run_blocks(z, layers, heads)
        ),
        "cpu": Backend(_cpu, lambda z, injection, layers, heads, *rest: cpu_cannot_run_blocks(z, layers, heads)),
        "cuda": Backend(cuda_kernels.reasoning_module, cuda_kernels.unsupported, cuda_kernels.passed_over),
    },
    unflatten=_unflatten,
)


@_op.public
def reasoning_module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Layer],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float = 1e-5,
    recompute: bool = False,
    damping: Damping | None = None,
) -> torch.Tensor:
    """One update of a recurrent module (H-level or L-level): add the injection, run the blocks in turn.

    With ``damping`` the result is ``(1 - weight) z + weight * blocks(z + injection) + noise_scale * noise``.

    Under ``torch.autocast`` it runs in autocast's dtype, as products do.

    Args:
        z: ``[B, S, D]`` state of the module, float32, bfloat16 or float16.
        injection: ``[B, S, D]``: ``z_H + x`` for the L-level, ``z_L`` for the H-level.
        layers: the blocks' weights, in the dtype of z: all :class:`hrm_kernels.BlockWeights`, all
            :class:`hrm_kernels.MixingBlockWeights` or all :class:`hrm_kernels.PreNormBlockWeights`, which scale z and
            the injection, too.
        cos, sin: RoPE tables as for :func:`hrm_kernels.rope_attention`, or None for both; None for blocks that mix
            positions.
        num_heads: H; 0 for blocks that mix positions.
        eps: of the norms.
        recompute: save only the inputs of the blocks for the backward, which computes the rest again.
        damping: how far the update moves z, and its noise (:class:`hrm_kernels.Damping`); None for a plain update.

    Returns:
        ``[B, S, D]``, the new state.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: HRM (arXiv 2506.21734), section 2; damping: Equilibrium Reasoners (arXiv 2605.21488).
    """
    z, injection, layers = _op.under_autocast(z, injection, layers)
    SPEC.check(z, injection)
    check_layers(SPEC.name, "layers", layers, "z", z, num_heads, cos, sin)
    check_eps(SPEC.name, eps)
    check_damping(SPEC.name, damping, "z", z)
    return _op(z, injection, layers, Heads(cos, sin, int(num_heads)), eps, recompute, damping)

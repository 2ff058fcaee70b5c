from collections.abc import Sequence

import torch

from hrm_kernels.backends import Backend, Op
from hrm_kernels.checks import check_eps, check_layers, check_like, check_shape, check_state
from hrm_kernels.ops.reasoning_module import cuda_kernels, reference
from hrm_kernels.ops.transformer_block import BlockWeights, cpu_cannot_run_blocks, triton_cannot_run_blocks


def blocks(flat: Sequence[torch.Tensor]) -> list[BlockWeights]:
    """The blocks of a flat list of their matrices, four to a block: the registered form of ``layers``."""
    return [BlockWeights(*flat[index : index + 4]) for index in range(0, len(flat), 4)]


def _triton(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[BlockWeights],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
) -> torch.Tensor:
    from hrm_kernels.ops.transformer_block.triton_block import blocks

    weights = [weight for block in layers for weight in block]
    return blocks(z + injection, weights, cos, sin, num_heads, eps, recompute)


def _cpu(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[BlockWeights],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
    recompute: bool = False,
) -> torch.Tensor:
    from hrm_kernels.ops.transformer_block.cpu_block import blocks

    weights = [weight for block in layers for weight in block]
    return blocks(z, injection, weights, cos, sin, num_heads, eps, recompute)


_op = Op(
    "reasoning_module",
    "(Tensor z, Tensor injection, Tensor[] layers, Tensor? cos, Tensor? sin, int num_heads, float eps, "
    "bool recompute=False) -> Tensor",
    {
        "reference": Backend(reference.reasoning_module),
        "triton": Backend(
            _triton,
            lambda z, injection, layers, cos, sin, num_heads, *rest: triton_cannot_run_blocks(z, layers, num_heads),
        ),
        "cpu": Backend(_cpu, lambda z, injection, layers, cos, sin, *rest: cpu_cannot_run_blocks(z, layers, cos, sin)),
        "cuda": Backend(cuda_kernels.reasoning_module, cuda_kernels.unsupported, cuda_kernels.passed_over),
    },
    unflatten=lambda z, injection, layers, *rest: (z, injection, blocks(layers), *rest),
    lowered=3,
)


def reasoning_module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[BlockWeights],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float = 1e-5,
    recompute: bool = False,
) -> torch.Tensor:
    """One update of a recurrent module (H-level or L-level): add the injection, run the blocks in turn.

    Under ``torch.autocast`` it runs in the dtype of that, as products do.

    Args:
        z: ``[B, S, D]`` state of the module, float32, bfloat16 or float16.
        injection: ``[B, S, D]``: ``z_H + x`` for the L-level, ``z_L`` for the H-level.
        layers: the blocks' weights, in the dtype of z.
        cos, sin: RoPE tables as for :func:`hrm_kernels.rope_attention`, or None for both.
        num_heads: H.
        eps: of the norms.
        recompute: keep only the blocks' inputs for the backward, and compute the rest again there.

    Returns:
        ``[B, S, D]``, the new state.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: HRM (arXiv 2506.21734), section 2.
    """
    z, injection, layers = _op.under_autocast(z, injection, layers)
    check_state("reasoning_module", "z", z)
    check_like("reasoning_module", "injection", injection, "z", z)
    check_shape("reasoning_module", "injection", injection, tuple(z.shape), "the shape of z")
    check_layers("reasoning_module", "layers", layers, "z", z, num_heads, cos, sin)
    check_eps("reasoning_module", eps)
    return _op(z, injection, layers, cos, sin, int(num_heads), eps, recompute)

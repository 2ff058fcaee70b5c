"""What recurrent_cycles and recurrent_segment have in common: the checks of their arguments, and who can serve them."""

from collections.abc import Sequence
from typing import Any

import torch

from hrm_kernels.autodiff import has_tangent
from hrm_kernels.checks import check_count, check_eps, check_layers
from hrm_kernels.damping import Damping, check_damping
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block import cpu_cannot_run_blocks, triton_cannot_run_blocks
from hrm_kernels.ops.transformer_block.weights import Layer
from hrm_kernels.spec import OpSpec


def check(
    spec: OpSpec,
    inputs: tuple[Any, ...],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    damping: Damping | None,
) -> None:
    """Check the arguments of a call; ``inputs`` are z_H, z_L, x, H_layers and L_layers.

    Raises:
        TypeError, ValueError: a dtype, device, shape or number of cycles does not fit.
        NotImplementedError: an argument carries a tangent of forward-mode differentiation.
    """
    z_H, z_L, x, H_layers, L_layers = inputs
    spec.check(z_H, z_L, x)
    check_layers(spec.name, "H_layers", H_layers, "z_H", z_H, num_heads, cos, sin)
    check_layers(spec.name, "L_layers", L_layers, "z_H", z_H, num_heads, cos, sin)
    for name, cycles in (("H_cycles", H_cycles), ("L_cycles", L_cycles)):
        check_count(spec.name, name, cycles)
    check_eps(spec.name, eps)
    check_damping(spec.name, damping, "z_H", z_H)
    if has_tangent(inputs):
        raise NotImplementedError(
            f"{spec.name}: an argument carries a forward-mode tangent, which would be lost here as gradients are; "
            "detach it (.detach()), or call reasoning_module for each update"
        )


def triton_cannot_run(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    *rest: Any,
) -> str | None:
    return triton_cannot_run_blocks(z_H, [*H_layers, *L_layers], heads)


def cpu_cannot_run(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    *rest: Any,
) -> str | None:
    return cpu_cannot_run_blocks(z_H, [*H_layers, *L_layers], heads)

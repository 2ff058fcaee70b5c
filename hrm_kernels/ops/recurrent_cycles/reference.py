from collections.abc import Callable, Sequence

import torch

from hrm_kernels.damping import Damping, following
from hrm_kernels.ops.reasoning_module.reference import reasoning_module
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block import eight_bit
from hrm_kernels.ops.transformer_block.weights import Layer

Update = Callable[[torch.Tensor, torch.Tensor, Damping | None], torch.Tensor]
"""``update(z, injection, damping)``: a module's next state."""


def run_cycles(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_update: Update,
    L_update: Update,
    H_cycles: int,
    L_cycles: int,
    damping: Damping | None = None,
    complete: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of the updates, for every backend that runs them one by one.

    With ``complete`` it includes the last update of each state.
    """
    with torch.no_grad():
        for h in range(H_cycles):
            last = h == H_cycles - 1 and not complete
            injection = z_H + x
            for _ in range(L_cycles - 1 if last else L_cycles):
                z_L = L_update(z_L, injection, damping)
                damping = following(damping)
            if not last:
                z_H = H_update(z_H, z_L, damping)
                damping = following(damping)
    return z_H, z_L


def by_module(layers: Sequence[Layer], heads: Heads, eps: float, name: str | None = None) -> Update:
    """The update of a module with these blocks, ``name``: with products in this format of 8 bits."""

    def update(z: torch.Tensor, injection: torch.Tensor, damping: Damping | None) -> torch.Tensor:
        if name is not None:
            return eight_bit.reasoning_module(z, injection, layers, heads, eps, damping, name)
        return reasoning_module(z, injection, layers, heads, eps, damping=damping)

    return update


def recurrent_cycles(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    damping: Damping | None = None,
    choice: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    name = None if choice is None else eight_bit.format_for(choice, z_H.device)
    H_update, L_update = (by_module(layers, heads, eps, name) for layers in (H_layers, L_layers))
    return run_cycles(z_H, z_L, x, H_update, L_update, H_cycles, L_cycles, damping)

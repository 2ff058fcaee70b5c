"""A segment in fewer launches and less memory, with the results of :meth:`hrm.model.HRMInner.loops`.

- Updates without gradients run in one call (:func:`hrm_kernels.recurrent_cycles`), on a GPU as one CUDA graph; a whole
  segment without gradients, too (:func:`hrm_kernels.recurrent_segment`), which measures how far it moves the states.
- With ``recompute`` the backward runs the updates again, from few stored states (:func:`hrm_kernels.fixed_point`).
- The Q values read the first position of z_H only, so the last block skips most of its work for the others.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch

import hrm_kernels
from hrm.config import ModelConfig
from hrm_kernels.autodiff import without_tangents
from hrm_kernels.damping import Damping
from hrm_kernels.nn import MixingModule, ReasoningModule
from hrm_kernels.ops.reasoning_module.first_position import first_position
from hrm_kernels.ops.transformer_block import Layer

Level = ReasoningModule | MixingModule
"""The network that updates a state."""
States = tuple[torch.Tensor, torch.Tensor]
"""``(z_H, z_L)``"""


class Network(Protocol):
    """What a segment needs of a :class:`hrm.model.HRMInner`."""

    cos: torch.Tensor | None
    sin: torch.Tensor | None
    eight_bit: str | None

    @property
    def config(self) -> ModelConfig: ...
    @property
    def levels(self) -> tuple[Level, Level]: ...
    def gradient_updates(self) -> int: ...
    def update(
        self,
        level: Level,
        z: torch.Tensor,
        injection: torch.Tensor,
        layers: Sequence[Layer] | None = None,
        damping: Damping | None = None,
    ) -> torch.Tensor: ...


def segment(
    network: Network, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, damping: Damping | None = None
) -> States:
    """One segment ``[B, S, D]``; gradients flow through the last ``network.gradient_updates()`` updates."""
    config, (H, L), with_gradient = network.config, network.levels, network.gradient_updates()
    H_layers, L_layers = None, None
    if with_gradient <= 2:  # one update of each follows; its recomputation converts nothing
        H_layers, L_layers = (level.weights(config.dtype) for level in (H, L))

    def update_H(damping: Damping | None, states: States, x: torch.Tensor) -> States:
        z_H, z_L = states
        return network.update(H, z_H, z_L, H_layers, damping), z_L

    def update_L(damping: Damping | None, states: States, x: torch.Tensor) -> States:
        z_H, z_L = states
        return z_H, network.update(L, z_L, z_H + x, L_layers, damping)

    cycle = [update_L] * config.L_cycles + [update_H]
    updates = config.H_cycles * cycle
    first = 0  # of the updates that follow the fused call
    # Cycles can be fused if at most their last two updates carry gradients; those two then follow the fused call.
    fused_cycles = (len(updates) - with_gradient + 2) // len(cycle)
    if fused_cycles:
        z_H, z_L = all_but_the_last_updates(network, z_H, z_L, x, fused_cycles, damping)
        first = fused_cycles * len(cycle) - 2
    numbered = [
        partial(update, damping and damping.after(number)) for number, update in enumerate(updates[first:], first)
    ]
    z_H, z_L = hrm_kernels.fixed_point(
        numbered, (z_H, z_L), x, steps=len(numbered), gradient=with_gradient, recompute=config.recompute
    )
    return z_H, z_L


def moved_segment(
    network: Network,
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    damping: Damping | None = None,
    weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(z_H, z_L, change [B, 2])`` of one segment without gradients (:func:`hrm_kernels.recurrent_segment`)."""
    config = network.config
    H_layers, L_layers = (level.weights(config.dtype) for level in network.levels)
    inputs = without_tangents((z_H, z_L, x, H_layers, L_layers))
    sizes = (network.levels[0].num_heads, config.H_cycles, config.L_cycles, config.rms_norm_eps)
    return hrm_kernels.recurrent_segment(*inputs, network.cos, network.sin, *sizes, weight, damping)


def first_position_after_segment(
    network: Network, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """``segment(network, z_H, z_L, x)[0][:, 0]``, ``[B, D]``."""
    config, (H, L) = network.config, network.levels
    z_H, z_L = all_but_the_last_updates(network, z_H, z_L, x, config.H_cycles)
    z_L = network.update(L, z_L, z_H + x)
    H_layers = H.weights(config.dtype)
    return first_position(z_H, z_L, H_layers, network.cos, network.sin, H.num_heads, config.rms_norm_eps)


def all_but_the_last_updates(
    network: Network, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, cycles: int, damping: Damping | None = None
) -> States:
    """``cycles`` cycles without their last update of each state, in one call without gradients."""
    config = network.config
    with torch.no_grad():
        H_layers, L_layers = (level.weights(config.dtype) for level in network.levels)
        inputs = without_tangents((z_H, z_L, x, H_layers, L_layers))
        sizes = (network.levels[0].num_heads, cycles, config.L_cycles, config.rms_norm_eps)
        return hrm_kernels.recurrent_cycles(*inputs, network.cos, network.sin, *sizes, damping, network.eight_bit)

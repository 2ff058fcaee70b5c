"""Universal reasoning model (arXiv 2512.14693): one state, blocks with a convolution in their SwiGLU, with halting."""

from typing import ClassVar

import torch
from torch import nn

import hrm_kernels
from hrm.config import ModelConfig, URMConfig
from hrm.fused import States
from hrm.model import HRM, HRMInner
from hrm_kernels.autodiff import has_tangent, without_tangents
from hrm_kernels.damping import Damping
from hrm_kernels.movement import move
from hrm_kernels.nn import URMBlock, truncated_normal_


class URMInner(HRMInner):
    """The recurrent network of a URM: its only state is z_H, and z_L has no positions.

    A segment updates the state ``H_cycles * L_cycles`` times: ``z_H = blocks(z_H + x)``. The last L_cycles updates
    carry gradients.
    """

    config: URMConfig  # type: ignore[assignment]

    def _make_levels(self, config: URMConfig) -> None:  # type: ignore[override]
        sizes = (config.hidden_size, config.num_heads, config.expansion, config.rms_norm_eps)
        self.layers = nn.ModuleList(URMBlock(*sizes) for _ in range(config.num_layers))

    def _make_initial_states(self, config: URMConfig) -> None:  # type: ignore[override]
        vector = torch.empty(config.hidden_size, dtype=torch.float32)
        self.register_buffer("init_hidden", truncated_normal_(vector, 1))

    @property
    def state_positions(self) -> tuple[int, int]:
        """Positions of z_H and z_L."""
        return self.config.positions, 0

    def initial_states(self, seeds: torch.Tensor) -> States:
        """``(z_H [B, P + seq_len, D], z_L [B, 0, D])`` of new rows: init_hidden at every position."""
        rows, config = seeds.shape[0], self.config
        hidden = self.init_hidden.to(config.dtype).expand(rows, config.positions, -1)  # type: ignore[operator]
        return hidden, hidden[:, :0]

    def update_hidden(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """One update of the state, ``[B, P + seq_len, D]``."""
        hidden = hidden + x
        for layer in self.layers:
            hidden = layer(hidden, self.cos, self.sin)
        return hidden

    def loops(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, damping: Damping | None = None) -> States:
        """One segment as in the paper; z_L is returned as it is."""
        total, kept = self.config.H_cycles * self.config.L_cycles, self.gradient_updates()
        for number in range(total):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= total - kept):
                z_H = self.update_hidden(z_H, x)
        return z_H, z_L

    def segment(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, damping: Damping | None = None) -> States:
        """:meth:`loops`, faster: the updates without gradients are one call (:func:`hrm_kernels.conv_cycles`).

        Those with gradients are another one, or with ``recompute`` take less memory (:func:`hrm_kernels.fixed_point`).
        """
        config = self.config
        total = config.H_cycles * config.L_cycles
        differentiates = torch.is_grad_enabled() or has_tangent((z_H, x))
        kept = min(self.gradient_updates(), total) if differentiates else 0
        if kept < total:
            with torch.no_grad():
                z_H = self.updates(z_H, x, total - kept, as_constants=True)
        if kept and config.recompute:
            z_H = hrm_kernels.fixed_point(self.updates, z_H, x, 1, steps=kept, gradient="full", recompute=True)
        elif kept:
            z_H = self.updates(z_H, x, kept)
        return z_H, z_L

    def moved_segment(
        self,
        z_H: torch.Tensor,
        z_L: torch.Tensor,
        x: torch.Tensor,
        damping: Damping | None = None,
        weight: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As for an HRM; the change is measured after the updates."""
        return move((z_H, z_L), self.segment(z_H, z_L, x), weight)

    def updates(self, z_H: torch.Tensor, x: torch.Tensor, count: int, as_constants: bool = False) -> torch.Tensor:
        """``count`` updates of the state, ``[B, P + seq_len, D]``, in one call; ``as_constants`` loses tangents."""
        config = self.config
        layers = [layer.weights(config.dtype) for layer in self.layers]  # type: ignore[operator]
        if as_constants:
            z_H, x, layers = without_tangents((z_H, x, layers))
        return hrm_kernels.conv_cycles(z_H, x, layers, self.cos, self.sin, config.num_heads, count, config.rms_norm_eps)

    def q_values(self, z_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(q_halt, 0)``, ``[B]`` float32 both, so that rows halt where q_halt > 0."""
        q_halt, q_continue = super().q_values(z_H)
        return q_halt, torch.zeros_like(q_continue)


class URM(HRM):
    """The universal reasoning model with adaptive computation time; used like an :class:`hrm.HRM`.

    ``state_dict()`` has the names of the published checkpoints (without their wrappers' prefixes). Rows halt where
    ``q_halt_logits`` > 0; ``q_continue_logits`` is 0.
    """

    config: URMConfig  # type: ignore[assignment]
    inner: URMInner
    _configured_by: ClassVar[type[ModelConfig]] = URMConfig
    _inner_type: ClassVar[type[HRMInner]] = URMInner

    def __init__(self, config: URMConfig, sharded: bool = False) -> None:
        super().__init__(config, sharded)  # type: ignore[arg-type]

"""The tiny recursive model (arXiv 2510.04871): one small network that updates both states, with halting."""

from typing import ClassVar

import torch

from hrm.config import ModelConfig, TRMConfig
from hrm.fused import Level
from hrm.model import HRM, HRMInner
from hrm_kernels.nn import MixingModule, ReasoningModule


class TRMInner(HRMInner):
    """An :class:`hrm.model.HRMInner` with one network, the L-level, for both states."""

    config: TRMConfig  # type: ignore[assignment]

    def _make_levels(self, config: TRMConfig) -> None:  # type: ignore[override]
        dim, sizes = config.hidden_size, (config.expansion, config.rms_norm_eps)
        if config.mlp_t:
            self.L_level = MixingModule(config.L_layers, config.positions, dim, *sizes)
        else:
            rope2d = config.pos_encodings == "rope2d"
            scales = config.residual_scales
            self.L_level = ReasoningModule(config.L_layers, dim, config.num_heads, *sizes, rope2d, scales)

    @property
    def levels(self) -> tuple[Level, Level]:
        """The network that updates z_H, and again as the one that updates z_L."""
        return self.L_level, self.L_level

    def q_values(self, z_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(q_halt, q_continue)``, logits, ``[B]`` float32 both; with ``no_ACT_continue`` q_continue is 0.

        Rows therefore halt where q_halt > q_continue, as for an HRM.
        """
        q_halt, q_continue = super().q_values(z_H)
        return q_halt, q_continue if self.config.learns_to_continue else torch.zeros_like(q_continue)


class TRM(HRM):
    """The tiny recursive model with adaptive computation time; used like an :class:`hrm.HRM`.

    ``state_dict()`` has the names of the published checkpoints (without their wrappers' prefixes). With
    ``no_ACT_continue`` (published) ``q_continue_logits`` is 0, so a row halts where ``q_halt_logits`` > 0; without it
    q_continue is learned and ``target_q_continue`` is among the outputs, as for an HRM.
    """

    config: TRMConfig  # type: ignore[assignment]
    inner: TRMInner
    _configured_by: ClassVar[type[ModelConfig]] = TRMConfig
    _inner_type: ClassVar[type[HRMInner]] = TRMInner

    def __init__(self, config: TRMConfig, sharded: bool = False) -> None:
        super().__init__(config, sharded)  # type: ignore[arg-type]

"""Equilibrium Reasoners (arXiv 2605.21488): a TRM with damped, noisy updates that starts from random states."""

from typing import ClassVar

import torch

from hrm.config import EqRConfig, ModelConfig
from hrm.fused import States
from hrm.model import HRMInner
from hrm.trm import TRM, TRMInner
from hrm_kernels.damping import Damping
from hrm_kernels.noise import INITIAL_H, INITIAL_L, truncated_noise


class EqRInner(TRMInner):
    """A :class:`hrm.trm.TRMInner` whose updates are ``z <- (1 - lambda) z + lambda f(z + injection) + noise``."""

    config: EqRConfig

    def _make_initial_states(self, config: EqRConfig) -> None:  # type: ignore[override]
        """Nothing: they are random."""

    def initial_seeds(self, rows: int, device: torch.device) -> torch.Tensor:
        """0 in evaluation; in training far enough apart for the seeds of rows that are refilled."""
        seeds = torch.arange(rows, dtype=torch.int64, device=device) << 32
        return seeds if self.training else torch.zeros_like(seeds)

    def initial_states(self, seeds: torch.Tensor) -> States:
        """``(z_H, z_L)`` ``[B, P + seq_len, D]``, truncated normal for each row and position."""
        config, sizes = self.config, (self.config.positions, self.config.hidden_size)
        z_H = config.H_init_std * truncated_noise(seeds, 0, *sizes, INITIAL_H)
        z_L = config.L_init_std * truncated_noise(seeds, 0, *sizes, INITIAL_L)
        return z_H.to(config.dtype), z_L.to(config.dtype)

    def restart(self, halted: torch.Tensor, seeds: torch.Tensor | None, z_H: torch.Tensor, z_L: torch.Tensor) -> States:
        """The states with those of ``halted`` rows replaced by their initial states; on a CPU only those are drawn."""
        if halted.device.type != "cpu" or torch.compiler.is_compiling() or halted.all():
            return super().restart(halted, seeds, z_H, z_L)
        assert seeds is not None
        rows = halted.nonzero().flatten()
        new_H, new_L = self.initial_states(seeds[rows])
        return z_H.index_copy(0, rows, new_H), z_L.index_copy(0, rows, new_L)

    def damping(self, seeds: torch.Tensor | None, steps: torch.Tensor) -> Damping:
        """How the next segment is damped for rows with these seeds after ``steps`` segments, ``[B]``."""
        config = self.config
        updates = config.H_cycles * (config.L_cycles + 1)
        return Damping(config.lambda_, config.noise_scale, seeds, steps.long() * updates)


class EqR(TRM):
    """An equilibrium reasoner with adaptive computation time; used like an :class:`hrm.TRM`.

    ``state_dict()`` has the names of the published checkpoints (without their wrappers' prefixes). Rows start from
    random states, and every update adds noise; both depend on the carry's ``seeds`` only. Rows with other seeds are
    other trajectories of the same puzzle.
    """

    config: EqRConfig
    inner: EqRInner
    _configured_by: ClassVar[type[ModelConfig]] = EqRConfig
    _inner_type: ClassVar[type[HRMInner]] = EqRInner

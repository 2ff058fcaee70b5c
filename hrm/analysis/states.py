"""The hidden states, update by update: how far they move, how many dimensions they fill, which way they go."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from hrm.errors import InputError
from hrm.families import build
from hrm.model import HRM, Batch
from hrm_kernels.damping import following

Level = Literal["H", "L"]
LEVELS: tuple[Level, Level] = ("H", "L")


@dataclass(frozen=True)
class StateUpdate:
    """One update of z_H or z_L.

    Attributes:
        segment: from 1.
        level: the updated state, z_H or z_L.
        before, after: ``[B, P + seq_len, D]`` in the forward dtype.
    """

    segment: int
    level: Level
    before: torch.Tensor
    after: torch.Tensor


def require_two_states(model: HRM) -> None:
    """
    Raises:
        InputError: the model has one state, as a URM has.
    """
    if "L" not in model.config.cycle:
        raise InputError(
            f"analyze: got a {type(model).__name__}, which has one state, expected a model with z_H and z_L; "
            "hrm.evaluate and hrm.scale measure it"
        )


@torch.no_grad()
def state_updates(model: HRM, batch: Batch, max_steps: int) -> Iterator[StateUpdate]:
    """Every update of both states in ``max_steps`` segments of a new ``batch``; no row halts.

    After the last update of a segment, the states equal the carry that ``model(carry, batch)`` returns.

    Raises:
        InputError: the model has one state, as a URM.
    """
    require_two_states(model)
    config, inner = model.config, model.inner
    x = inner.embed(batch)
    rows, device = len(x), x.device
    seeds = inner.initial_seeds(rows, device)
    states = dict(zip(LEVELS, inner.initial_states(torch.zeros(rows, dtype=torch.int64, device=device))))
    modules = dict(zip(LEVELS, inner.levels))
    L_updates: list[Level] = ["L"] * config.L_cycles
    cycle: list[Level] = [*L_updates, "H"]
    for segment in range(1, max_steps + 1):
        damping = inner.damping(seeds, torch.full((rows,), segment - 1, device=device))
        for level in cycle * config.H_cycles:
            before = states[level]
            injection = states["H"] + x if level == "L" else states["L"]
            states[level] = inner.update(modules[level], before, injection, damping=damping)
            damping = following(damping)
            yield StateUpdate(segment, level, before, states[level])


def residual(before: torch.Tensor, after: torch.Tensor) -> float:
    """The forward residual ``|after - before| / sqrt(D)`` of ``[B, S, D]`` states, averaged over rows and positions.

    RMS-normed states have norm sqrt(D): at 1, the change is as long as the state.
    """
    return float((after.float() - before.float()).norm(dim=-1).mean()) / math.sqrt(after.shape[-1])


class Covariance:
    """The covariance of state vectors, accumulated in float64.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        self._count, self._sum, self._products = 0, np.zeros(dim), np.zeros((dim, dim))

    def add(self, states: torch.Tensor | np.ndarray) -> None:
        """Add ``[..., D]`` states."""
        rows = torch.as_tensor(states).reshape(-1, len(self._sum)).double().cpu().numpy()
        self._count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def eigenvalues(self) -> np.ndarray:
        """The eigenvalues, ``[D]`` float64, descending, none below 0.

        Raises:
            ValueError: fewer than two states were added.
        """
        if self._count < 2:
            raise ValueError(f"the covariance of {self._count} states is not defined; add two or more")
        mean = self._sum / self._count
        covariance = self._products / self._count - np.outer(mean, mean)
        return np.linalg.eigvalsh(covariance)[::-1].clip(min=0)


def participation_ratio(eigenvalues: np.ndarray) -> float:
    """``(sum of λ)² / (sum of λ²)`` of a covariance's eigenvalues: about how many dimensions the states fill, 1 to D.

    NaN if all eigenvalues are 0: the states do not vary.

    Source: HRM (arXiv 2506.21734), section 4, "Brain correspondence".
    """
    squares = float((eigenvalues**2).sum())
    return float(eigenvalues.sum()) ** 2 / squares if squares else math.nan


def principal_components(states: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The states' first principal components.

    Args:
        states: ``[n, features]``, n at least 2.
        components: number of components, at most n.

    Returns:
        ``[n, components]`` float64 projections of the centred states, and ``[components]`` shares of the variance. The
        projection with the largest magnitude is positive for each component.
    """
    centred = np.asarray(states, np.float64)
    centred = centred - centred.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    projected = (left * values)[:, :components]
    signs = np.sign(projected[np.abs(projected).argmax(0), np.arange(projected.shape[1])])
    total = float((values**2).sum())
    return projected * np.where(signs == 0, 1, signs), values[:components] ** 2 / (total or 1)


def untrained(model: HRM, seed: int = 0) -> HRM:
    """A model of the same configuration with new random weights, on the same device, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(model.config).to(next(model.parameters()).device).eval()

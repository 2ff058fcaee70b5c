"""Damped, noisy updates of a state: ``z <- (1 - weight) z + weight f(z) + noise_scale * normal numbers``."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hrm_kernels.noise import check_seeds, noise

__all__ = ["Damping", "check_damping", "damp"]


class Damping(NamedTuple):
    """How far an update moves a state, and the noise that is added to it.

    The noise of a row depends on its seed and on the number of its updates so far, and not on other rows
    (:func:`hrm_kernels.noise`).

    Attributes:
        weight: of the new state, 0 to 1; or ``[B]`` float32, one for each row. 1 without noise is a plain update.
        noise_scale: standard deviation of the noise; 0 for none.
        seeds: ``[B]`` int64; None without noise.
        steps: ``[B]`` int32 or int64, each row's updates before this call; None for 0. Both states of a model count.
        first_step: the number of the call's first update, added to ``steps``.

    Source: Equilibrium Reasoners (arXiv 2605.21488).
    """

    weight: float | torch.Tensor
    noise_scale: float = 0.0
    seeds: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    first_step: int = 0

    def after(self, updates: int) -> "Damping":
        """That of the update which follows ``updates`` others."""
        return self._replace(first_step=self.first_step + updates)

    def tensors(self) -> list[torch.Tensor]:
        """Its tensors, in the order of the fields."""
        return [value for value in self if isinstance(value, torch.Tensor)]

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> "Damping":
        """The same with other tensors in place of :meth:`tensors`; with None for each where ``tensors`` is empty."""
        others = iter(tensors)
        values = (next(others, None) if isinstance(value, torch.Tensor) else value for value in self)
        return Damping(*values)  # type: ignore[arg-type]


class Rows(NamedTuple):
    """A damping as the kernels of the CPU library take it, each tensor contiguous.

    Attributes:
        weights: ``[B]`` float32.
        noise_scale: standard deviation of the noise.
        seeds, steps: ``[B]`` int64.
    """

    weights: torch.Tensor
    noise_scale: float
    seeds: torch.Tensor
    steps: torch.Tensor


def by_row(damping: Damping, z: torch.Tensor) -> Rows:
    """The damping of each row of ``z [B, S, D]``."""
    rows, device, weight = z.shape[0], z.device, damping.weight
    if isinstance(weight, torch.Tensor):
        weights = weight.detach().expand(rows).contiguous()
    else:
        weights = torch.full((rows,), weight, dtype=torch.float32, device=device)
    seeds, steps = damping.seeds, damping.steps
    if seeds is None:
        seeds = torch.zeros(rows, dtype=torch.int64, device=device)
    if steps is None:
        steps = torch.zeros(rows, dtype=torch.int64, device=device)
    steps = steps.long() + damping.first_step
    return Rows(weights, float(damping.noise_scale), seeds.contiguous(), steps.contiguous())


def damp(z: torch.Tensor, updated: torch.Tensor, damping: Damping | None) -> torch.Tensor:
    """The next state ``[B, S, D]`` after ``z``, of its plain update; differentiable.

    It is computed in float32 (float64 for such states) and rounded once.
    """
    if damping is None:
        return updated
    dtype = torch.promote_types(z.dtype, torch.float32)
    weight = damping.weight
    if isinstance(weight, torch.Tensor):
        weight = weight.to(dtype).view(-1, 1, 1)
    new = (1 - weight) * z.to(dtype) + weight * updated.to(dtype)
    if damping.noise_scale:
        assert damping.seeds is not None  # check_damping
        steps = damping.first_step if damping.steps is None else damping.steps + damping.first_step
        new = new + damping.noise_scale * noise(damping.seeds, steps, *z.shape[1:])
    return new.to(z.dtype)


def check_damping(op: str, damping: Damping | None, name: str, z: torch.Tensor) -> None:
    """
    Raises:
        TypeError, ValueError: ``damping`` does not fit ``z [B, S, D]``, which the caller names ``name``.
    """
    if damping is None:
        return
    if not isinstance(damping, Damping):
        raise TypeError(f"{op}: damping is {type(damping).__name__}, expected hrm_kernels.Damping, or None")
    weight, noise_scale, seeds, steps, first_step = damping
    rows = z.shape[0]
    if isinstance(weight, torch.Tensor):
        if weight.dtype is not torch.float32 or weight.shape not in ((), (rows,)) or weight.device != z.device:
            raise ValueError(
                f"{op}: damping.weight is {weight.dtype} {list(weight.shape)} on {weight.device}, expected float32 "
                f"[B] = [{rows}] on {z.device} as {name}, or a number"
            )
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: damping.weight requires a gradient, which it does not get; detach it")
    elif not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise ValueError(f"{op}: damping.weight is {weight!r}, expected a number from 0 to 1 (published: 0.95)")
    if not isinstance(noise_scale, int | float) or not 0 <= noise_scale < float("inf"):
        raise ValueError(f"{op}: damping.noise_scale is {noise_scale!r}, expected a number >= 0 (published: 0.01)")
    if not isinstance(first_step, int) or isinstance(first_step, bool) or first_step < 0:
        raise ValueError(f"{op}: damping.first_step is {first_step!r}, expected an integer >= 0")
    if noise_scale and seeds is None:
        raise ValueError(f"{op}: damping.noise_scale is {noise_scale} without seeds; pass seeds [B], one for each row")
    if seeds is not None:
        check_seeds(f"{op}: damping", seeds, 0 if steps is None else steps, rows)
        if seeds.device != z.device:
            raise ValueError(f"{op}: damping.seeds is on {seeds.device}, expected {z.device} as {name}; move them")


def following(damping: Damping | None) -> Damping | None:
    """That of the next update; None stays None."""
    return None if damping is None else damping.after(1)


def as_damping(damping: Damping | torch.Tensor | None = None, *rest: object) -> Damping | None:
    """The argument of a public function, or the fields of one in a registered op, where the weight is a tensor."""
    if damping is None or isinstance(damping, Damping):
        return damping
    return Damping(damping, *rest)  # type: ignore[arg-type]

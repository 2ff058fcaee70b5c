"""Adaptive computation time: when a row of a batch halts, and what its Q values should have been."""

from typing import TypeVar

import numpy as np
import torch

Values = TypeVar("Values", torch.Tensor, np.ndarray, float)


def prefers_halting(q_halt: Values, q_continue: Values) -> Values:
    """Whether halting promises more than another segment; elementwise, as booleans.

    Source: HRM (arXiv 2506.21734), section 2, "Adaptive computational time".
    """
    return q_halt > q_continue  # type: ignore[return-value]


def draw_min_steps(
    batch_size: int,
    halt_max_steps: int,
    exploration_prob: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Exploration: with probability ``exploration_prob`` a row must run a minimum of 2 .. halt_max_steps segments.

    Returns:
        ``[batch_size]`` int32, 0 for rows without a minimum.
    """
    if device is None and generator is not None:
        device = generator.device
    explores = torch.rand(batch_size, generator=generator, dtype=torch.float32, device=device) < exploration_prob
    # a uniform number of [0, 1) can round up to 1 after scaling, hence the clamp
    low, high = 2, max(2, halt_max_steps)
    share = torch.rand(batch_size, generator=generator, dtype=torch.float32, device=device)
    steps = low + (share * (high - low + 1)).int()
    return torch.where(explores, steps.clamp(max=high), 0).int()


def halts(
    steps: torch.Tensor, q_halt: torch.Tensor, q_continue: torch.Tensor, halt_max_steps: int, min_steps: torch.Tensor
) -> torch.Tensor:
    """Rows that halt in training after ``steps`` segments: the last step, or halting promises more than going on.

    All arguments but ``halt_max_steps`` and the result (bool) are ``[B]``.
    """
    halted = steps >= halt_max_steps
    if halt_max_steps > 1:
        halted = (halted | prefers_halting(q_halt, q_continue)) & (steps >= min_steps)
    return halted


def target_q_continue(
    steps: torch.Tensor, next_q_halt: torch.Tensor, next_q_continue: torch.Tensor, halt_max_steps: int
) -> torch.Tensor:
    """What going on is worth, ``[B]`` in (0, 1): the better choice after the next segment, which must halt if last."""
    best = torch.where(steps >= halt_max_steps, next_q_halt, torch.maximum(next_q_halt, next_q_continue))
    return torch.sigmoid(best)

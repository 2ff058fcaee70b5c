"""Adaptive computation time: when a row of a batch halts, and the target of its Q value."""

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
    """Draw the minimum number of segments of each row (exploration).

    With probability ``exploration_prob`` it is uniform in 2 .. halt_max_steps, otherwise 0.

    Returns:
        ``[batch_size]`` int32.
    """
    if device is None and generator is not None:
        device = generator.device
    explores = torch.rand(batch_size, generator=generator, dtype=torch.float32, device=device) < exploration_prob
    # Scaling can round a share just below 1 up to high + 1, hence the clamp.
    low, high = 2, max(2, halt_max_steps)
    share = torch.rand(batch_size, generator=generator, dtype=torch.float32, device=device)
    steps = low + (share * (high - low + 1)).int()
    return torch.where(explores, steps.clamp(max=high), 0).int()


def halts(
    steps: torch.Tensor, q_halt: torch.Tensor, q_continue: torch.Tensor, halt_max_steps: int, min_steps: torch.Tensor
) -> torch.Tensor:
    """Whether each row halts in training after ``steps`` segments: at the last one, or if its Q values prefer it.

    All arguments but ``halt_max_steps``, and the result (bool), are ``[B]``.
    """
    halted = steps >= halt_max_steps
    if halt_max_steps > 1:
        halted = (halted | prefers_halting(q_halt, q_continue)) & (steps >= min_steps)
    return halted


def target_q_continue(
    steps: torch.Tensor, next_q_halt: torch.Tensor, next_q_continue: torch.Tensor, halt_max_steps: int
) -> torch.Tensor:
    """The target of q_continue, ``[B]`` in (0, 1): the better Q value after one more segment.

    Rows that have run all ``halt_max_steps`` segments take the next q_halt. All other arguments are ``[B]``.
    """
    best = torch.where(steps >= halt_max_steps, next_q_halt, torch.maximum(next_q_halt, next_q_continue))
    return torch.sigmoid(best)

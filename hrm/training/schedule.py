"""What changes with the step: the learning rate, and how many updates carry gradients."""

import math

from hrm.config import ModelConfig
from hrm_kernels.fixed_point import Gradient, gradient_steps, warm_up


def learning_rate(step: int, base: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """The learning rate of step ``step``, counted from 1.

    It rises linearly from 0 to ``base`` at step ``warmup_steps``, then falls along a half cosine to
    ``min_ratio * base`` at step ``total_steps``, and stays there. With ``min_ratio`` 1.0 it is constant after the
    warm-up.

    Source: the published HRM training code.
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return base * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def total_steps(epochs: int, groups: int, mean_puzzle_examples: float, global_batch_size: int) -> int:
    """The number of steps in ``epochs`` epochs. An epoch visits one puzzle of each group, with all its examples."""
    return max(1, int(epochs * groups * mean_puzzle_examples / global_batch_size))


def gradient_mode(step: int, warmup_steps: int, model: ModelConfig) -> Gradient:
    """The gradient mode of step ``step``, counted from 1.

    During the warm-up it is a number of updates, which grows from one of each level to what ``model.gradient`` says.
    """
    if step > warmup_steps:
        return model.gradient
    cycle = [1] * model.L_cycles + [0]
    updates = model.H_cycles * len(cycle)
    first, last = (gradient_steps(cycle, updates, mode) for mode in ("one_step", model.gradient))
    return warm_up(step - 1, warmup_steps, last, first)

"""The learning rate's course and the number of steps of a run."""

import math


def learning_rate(step: int, base: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """The learning rate of step ``step``, counted from 1.

    Rises linearly from 0 to ``base`` at step ``warmup_steps``, then falls along a half cosine to ``min_ratio * base``
    at step ``total_steps`` (1.0: stays constant), where it remains. Source: the published HRM training code.
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return base * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def total_steps(epochs: int, groups: int, mean_puzzle_examples: float, global_batch_size: int) -> int:
    """Steps in which ``epochs`` epochs are seen: an epoch holds one puzzle of each group, with all its examples."""
    return max(1, int(epochs * groups * mean_puzzle_examples / global_batch_size))

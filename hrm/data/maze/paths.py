"""Shortest paths in many mazes at once."""

import numpy as np


def flood(free: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Number of steps from the start cells to every cell: a breadth-first search in all mazes at once.

    Args:
        free: ``[n, rows, columns]`` bool, the cells that can be entered.
        start: ``[n, rows, columns]`` bool, the start cells.

    Returns:
        ``[n, rows, columns]`` int32; -1 for cells that cannot be reached.
    """
    count, rows, columns = free.shape
    # One flat array with a wall around each maze: a step is a shift, and no step leads into another maze.
    stride = columns + 2
    unseen = np.pad(free & ~start, ((0, 0), (1, 1), (1, 1))).ravel()
    wave = np.pad(start, ((0, 0), (1, 1), (1, 1))).ravel()
    steps = np.where(wave, 0, -1).astype(np.int32)
    level = 0
    while wave.any():
        level += 1
        reached = np.zeros_like(wave)
        for shift in (1, stride):
            reached[shift:] |= wave[:-shift]
            reached[:-shift] |= wave[shift:]
        reached &= unseen
        unseen ^= reached
        np.copyto(steps, np.int32(level), where=reached)
        wave = reached
    return steps.reshape(count, rows + 2, stride)[:, 1:-1, 1:-1]

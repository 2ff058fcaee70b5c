"""Puzzles and their augmentations as a set of a data folder."""

from collections.abc import Callable

import numpy as np

from hrm.data.format import SetBuilder
from hrm.data.puzzles import Puzzles, row_keys
from hrm.data.sudoku.augmentation import augment
from hrm.sizes import require_memory

_FEWER = "lower --augment or --train"
_CHUNK = 65536  # boards augmented at once


def build_set(
    puzzles: Puzzles,
    augmentations: int,
    rng: np.random.Generator,
    avoid: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
) -> SetBuilder:
    """Make one group per puzzle: the puzzle itself and ``augmentations`` equivalent ones.

    Args:
        puzzles: the originals.
        augmentations: number of equivalent puzzles per group.
        rng: the source of randomness.
        avoid: ``[m, seq_len]`` tokens of puzzles to avoid (the test set); an augmentation equal to one of them is
            replaced by its original.
        progress: called with the number of groups done.

    Raises:
        InputError: this machine does not have enough memory.
    """
    size = 2 * puzzles.inputs.shape[1] * (augmentations + 1)
    require_memory(len(puzzles) * size, f"{len(puzzles)} puzzles with {augmentations} equivalent ones each", _FEWER)
    builder = SetBuilder()
    forbidden = row_keys(avoid) if avoid is not None else np.zeros(0, np.uint64)
    per_group = augmentations + 1
    step = max(_CHUNK // per_group, 1)
    for start in range(0, len(puzzles), step):
        inputs, labels = puzzles.inputs[start : start + step], puzzles.labels[start : start + step]
        if augmentations:
            originals = np.repeat(inputs, per_group, 0), np.repeat(labels, per_group, 0)
            inputs, labels = augment(*originals, rng)
            original = np.isin(row_keys(inputs), forbidden)
            original[::per_group] = True
            inputs[original], labels[original] = originals[0][original], originals[1][original]
        builder.add_puzzles(inputs, labels, per_group)
        if progress:
            progress(min(start + step, len(puzzles)))
    return builder

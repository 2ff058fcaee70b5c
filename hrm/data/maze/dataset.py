"""Mazes and their reflections and turns as a set of a data folder."""

import numpy as np

from hrm.data.dihedral import dihedral
from hrm.data.format import SetBuilder
from hrm.data.puzzles import Puzzles, row_keys


def build_set(puzzles: Puzzles, augment: bool = False, avoid: np.ndarray | None = None) -> SetBuilder:
    """Make one group per maze: the maze itself, and with ``augment`` its seven other reflections and turns.

    A maze that is in ``avoid`` (``[m, seq_len]`` tokens of the test set) is replaced by its original.
    """
    builder = SetBuilder()
    if not augment:
        builder.add_puzzles(puzzles.inputs, puzzles.labels)
        return builder
    size = round(puzzles.inputs.shape[1] ** 0.5)
    inputs, labels = (
        np.stack([dihedral(tokens.reshape(-1, size, size), transform) for transform in range(8)], 1)
        for tokens in (puzzles.inputs, puzzles.labels)
    )
    if avoid is not None:
        clash = np.isin(row_keys(inputs.reshape(-1, size * size)), row_keys(avoid)).reshape(-1, 8)
        for tokens in (inputs, labels):
            np.copyto(tokens, tokens[:, :1].copy(), where=clash[:, :, None, None])
    builder.add_puzzles(inputs.reshape(-1, size * size), labels.reshape(-1, size * size), 8)
    return builder

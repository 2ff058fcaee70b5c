"""Fingerprints of data sets, to tell two of the same shape apart."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from hrm.data.format import PuzzleDataset
from hrm.files import read_json

_VALUES = 1 << 26  # most tokens read, 256 MiB as int32: a second or less
_BLOCKS = 64


def fingerprint(dataset: PuzzleDataset) -> str:
    """32 hex digits that depend on the puzzles, their order and their groups, but not on the dtype on disk.

    All indices are read. If the examples have more than 2^26 tokens, evenly spaced blocks with 2^26 tokens in total
    are read.
    """
    digest = hashlib.blake2b(digest_size=16)
    rows = max(_BLOCKS, _VALUES // (2 * dataset.metadata.seq_len * max(1, len(dataset.sets))))
    for puzzle_set in dataset.sets:
        for array in (puzzle_set.puzzle_indices, puzzle_set.group_indices, puzzle_set.puzzle_identifiers):
            digest.update(np.ascontiguousarray(array, "<i8").data)
        if puzzle_set.num_examples <= rows:
            blocks = [slice(0, puzzle_set.num_examples)]
        else:
            starts = np.linspace(0, puzzle_set.num_examples - rows // _BLOCKS, _BLOCKS).astype(int)
            blocks = [slice(start, start + rows // _BLOCKS) for start in starts]
        for block in blocks:
            for array in (puzzle_set.inputs, puzzle_set.labels):
                digest.update(np.ascontiguousarray(array[block], "<i4").data)
    return digest.hexdigest()


def names_fingerprint(dataset: PuzzleDataset) -> str | None:
    """32 hex digits of the names of the puzzle identifiers, in order; None if the folder does not name them."""
    file = dataset.folder / "identifiers.json"
    if not file.is_file():
        return None
    status = file.stat()
    return _names_fingerprint(file.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _names_fingerprint(file: Path, changed: int, size: int) -> str:
    """Cached for evaluations during a training run: ARC data has a million names."""
    return hashlib.blake2b(json.dumps(read_json(file)).encode(), digest_size=16).hexdigest()

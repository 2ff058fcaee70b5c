"""What tells one data set from another of the same shape."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from hrm.data.format import PuzzleDataset
from hrm.files import read_json

_VALUES = 1 << 26  # of inputs and labels that are read, 256 MiB: a second or less
_BLOCKS = 64


def fingerprint(dataset: PuzzleDataset) -> str:
    """32 hex digits that differ where the puzzles, their order or their groups do, whatever the dtype on disk.

    Of examples with more than 2^26 tokens, evenly spaced blocks are read, that many in all; of the indices everything.
    """
    digest = hashlib.blake2b(digest_size=16)
    rows = max(_BLOCKS, _VALUES // (2 * dataset.metadata.seq_len * max(1, len(dataset.sets))))
    for one in dataset.sets:
        for array in (one.puzzle_indices, one.group_indices, one.puzzle_identifiers):
            digest.update(np.ascontiguousarray(array, "<i8").data)
        if one.num_examples <= rows:
            blocks = [slice(0, one.num_examples)]
        else:
            starts = np.linspace(0, one.num_examples - rows // _BLOCKS, _BLOCKS).astype(int)
            blocks = [slice(start, start + rows // _BLOCKS) for start in starts]
        for block in blocks:
            for array in (one.inputs, one.labels):
                digest.update(np.ascontiguousarray(array[block], "<i4").data)
    return digest.hexdigest()


def names_fingerprint(dataset: PuzzleDataset) -> str | None:
    """32 hex digits of the names of the puzzle identifiers, in order; None where the folder does not name them."""
    file = dataset.folder / "identifiers.json"
    if not file.is_file():
        return None
    about = file.stat()
    return _names_fingerprint(file.resolve(), about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=8)
def _names_fingerprint(file: Path, changed: int, size: int) -> str:
    """Remembered for evaluations during a training: ARC data have a million names."""
    return hashlib.blake2b(json.dumps(read_json(file)).encode(), digest_size=16).hexdigest()

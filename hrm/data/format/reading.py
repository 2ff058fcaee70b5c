"""Open a data folder: every array is checked against its metadata and the other arrays."""

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from hrm.data.format.dataset import PuzzleDataset, PuzzleSet, require_inside
from hrm.data.format.metadata import Metadata
from hrm.errors import InputError, describe
from hrm.files import read_json, visible

_FIELDS = ("inputs", "labels", "puzzle_indices", "group_indices", "puzzle_identifiers")


def open_dataset(folder: Path | str, split: str) -> PuzzleDataset:
    """Open ``<folder>/<split>`` without reading the examples into memory.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    directory = folder / split
    if not folder.is_dir():
        raise InputError(f"data folder {folder} does not exist; make one: hrm data sudoku|maze|arc --out {folder}")
    if not (directory / "dataset.json").is_file():
        splits = [path.name for path in visible(folder) if (path / "dataset.json").is_file()]
        existing = f"it has {', '.join(splits)}" if splits else "no split, so it is not a data folder"
        raise InputError(f"{folder} has no split '{split}' ({existing}); expected {directory / 'dataset.json'}")
    require_inside(folder, directory / "dataset.json")
    values = read_json(directory / "dataset.json")
    if isinstance(values, dict) and "max_grid_size" in values and "pad_id" not in values:
        raise InputError(
            f"{folder} is a data folder of nano-trm, which has other tokens and index files; make one of the same "
            "puzzles: hrm data sudoku --hub sapientinc/sudoku-extreme, or maze --hub sapientinc/maze-30x30-hard-1k"
        )
    try:
        metadata = Metadata.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{directory / 'dataset.json'}: {describe(error)}; build the data set again") from None
    sets = tuple(_open_set(directory, name, metadata) for name in metadata.sets)
    dataset = PuzzleDataset(folder, split, metadata, sets)
    if dataset.num_examples == 0:
        raise InputError(f"{directory} holds no examples; build the data set again")
    if metadata.mean_puzzle_examples > dataset.num_examples:
        raise InputError(
            f"{directory / 'dataset.json'}: mean_puzzle_examples is {metadata.mean_puzzle_examples}, and there are "
            f"{dataset.num_examples} examples in total; build the data set again"
        )
    return dataset


def _open_set(directory: Path, name: str, metadata: Metadata) -> PuzzleSet:
    arrays = {}
    for key in _FIELDS:
        file = directory / f"{name}__{key}.npy"
        require_inside(directory.parent, file)
        arrays[key] = _load(file)
    inputs, labels = arrays["inputs"], arrays["labels"]
    puzzle_indices, group_indices = arrays["puzzle_indices"], arrays["group_indices"]
    identifiers = arrays["puzzle_identifiers"]

    def require(condition: bool, key: str, expected: str) -> None:
        if not condition:
            array = arrays[key]
            raise InputError(
                f"{directory / f'{name}__{key}.npy'} is {array.dtype} of shape {list(array.shape)}, "
                f"expected {expected}; build the data set again"
            )

    for key in _FIELDS:
        require(arrays[key].dtype.kind in "iu", key, "integers")
    rows_fit = inputs.ndim == 2 and inputs.shape[1] == metadata.seq_len
    require(rows_fit, "inputs", f"[examples, {metadata.seq_len}] (seq_len)")
    require(labels.shape == inputs.shape, "labels", f"{list(inputs.shape)}, the shape of the inputs")
    ascending = f"ascending from 0 to {len(inputs)} (the number of examples)"
    require(_divides(puzzle_indices, len(inputs)), "puzzle_indices", ascending)
    puzzles = len(puzzle_indices) - 1
    require(identifiers.shape == (puzzles,), "puzzle_identifiers", f"[{puzzles}], one for each puzzle")
    require(_divides(group_indices, puzzles), "group_indices", f"ascending from 0 to {puzzles} (the number of puzzles)")
    limit = metadata.num_puzzle_identifiers
    in_range = not identifiers.size or (identifiers.min() >= 0 and identifiers.max() < limit)
    require(bool(in_range), "puzzle_identifiers", f"values below num_puzzle_identifiers {limit}")
    # All values fit int64 by now. Differences of unsigned integers would wrap around.
    indices = (array.astype(np.int64) for array in (puzzle_indices, group_indices, identifiers))
    return PuzzleSet(name, inputs, labels, *indices)


def _divides(indices: np.ndarray, count: int) -> bool:
    """Whether ``indices`` ascend from 0 to ``count``: the bounds of consecutive parts."""
    return bool(
        indices.ndim == 1
        and len(indices) > 0
        and indices[0] == 0
        and indices[-1] == count
        and (indices[1:] >= indices[:-1]).all()
    )


def _load(path: Path) -> np.ndarray:
    """The array in ``path``, memory-mapped: the size in its header allocates nothing."""
    try:
        with np.errstate(over="ignore"):  # a shape beyond 64 bits is refused below
            return np.lib.format.open_memmap(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; build the data set again") from None
    except Exception as error:  # malformed bytes lead the reader into errors of any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as a NumPy array ({reason}); build the data set again") from None

"""The published data format on disk: read, checked, written.

``<dir>/{train,test}/dataset.json`` and, for each set, ``<set>__{inputs,labels,puzzle_indices,group_indices,
puzzle_identifiers}.npy``; ``<dir>/identifiers.json`` names the puzzle identifiers. A *group* holds *puzzles*
(an original and its augmentations), a puzzle holds *examples* (input and label sequences).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from hrm.errors import InputError, describe
from hrm.files import folder_written_beside, read_json, visible
from hrm.sizes import Identifiers, Length, Vocabulary

IGNORE_LABEL = -100
"""The label that the losses leave out; labels equal to ``ignore_label_id`` become this."""

_FIELDS = ("inputs", "labels", "puzzle_indices", "group_indices", "puzzle_identifiers")


class Metadata(BaseModel):
    """``dataset.json`` of one split; keys beyond the published ones are kept.

    TRM's loader asks for ``total_puzzles``, which HRM's builders do not write.
    """

    model_config = ConfigDict(extra="allow")

    pad_id: NonNegativeInt
    ignore_label_id: int | None
    blank_identifier_id: NonNegativeInt
    vocab_size: Vocabulary
    seq_len: Length
    num_puzzle_identifiers: Identifiers
    total_groups: NonNegativeInt
    mean_puzzle_examples: float = Field(ge=0, allow_inf_nan=False)
    total_puzzles: NonNegativeInt | None = None
    sets: list[str]

    @field_validator("sets")
    @classmethod
    def _plain_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name or name.startswith(".") or set(name) & set("/\\\0"):
                raise ValueError(f"the set name {name!r} is no plain name, and could lead out of the folder")
        if len(set(names)) < len(names):
            raise ValueError("a set is named twice, and its examples would count twice")
        return names

    @model_validator(mode="after")
    def _fillers_fit(self) -> "Metadata":
        for name, of_what in (("pad_id", "vocab_size"), ("blank_identifier_id", "num_puzzle_identifiers")):
            value, limit = getattr(self, name), getattr(self, of_what)
            if value >= limit:
                raise ValueError(f"{name} is {value}, expected less than {of_what} {limit}")
        return self

    @property
    def task(self) -> str | None:
        """The task's name where our builders wrote it (published folders have none)."""
        return (self.model_extra or {}).get("task")


@dataclass(frozen=True)
class PuzzleSet:
    """The arrays of one set.

    Attributes:
        inputs, labels: ``[examples, seq_len]`` tokens, memory-mapped, of any integer dtype.
        puzzle_indices: ``[puzzles + 1]`` int64; the examples of puzzle i are ``[i], [i + 1]``.
        group_indices: ``[groups + 1]`` int64; the puzzles of group g are ``[g], [g + 1]``.
        puzzle_identifiers: ``[puzzles]`` int64, the row of the puzzle embedding.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    puzzle_indices: np.ndarray
    group_indices: np.ndarray
    puzzle_identifiers: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.inputs)

    @property
    def num_puzzles(self) -> int:
        return len(self.puzzle_identifiers)

    @property
    def num_groups(self) -> int:
        return len(self.group_indices) - 1


@dataclass(frozen=True)
class PuzzleDataset:
    """One split of a data folder."""

    folder: Path
    split: str
    metadata: Metadata
    sets: tuple[PuzzleSet, ...]

    @property
    def num_examples(self) -> int:
        return sum(puzzle_set.num_examples for puzzle_set in self.sets)

    def identifiers(self) -> list[str]:
        """Names of the puzzle identifiers, by identifier; 0 is ``<blank>``.

        Raises:
            InputError: the folder has none, or something else in its place.
        """
        names = read_json(self.file("identifiers.json"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{self.folder / 'identifiers.json'} holds no list of names; build the data set again")
        return names

    def file(self, name: str) -> Path:
        """The path of a file in the folder, which may be missing.

        Raises:
            InputError: it leads out of the folder.
        """
        _require_inside(self.folder, self.folder / name)
        return self.folder / name


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
        found = f"it has {', '.join(splits)}" if splits else "no split at all, so it is no data folder"
        raise InputError(f"{folder} has no split '{split}' ({found}); expected {directory / 'dataset.json'}")
    _require_inside(folder, directory / "dataset.json")
    values = read_json(directory / "dataset.json")
    if isinstance(values, dict) and "max_grid_size" in values and "pad_id" not in values:
        raise InputError(
            f"{folder} is a data folder of nano-trm, whose tokens and index files are others; make one of the same "
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
            f"{dataset.num_examples} examples in all; build the data set again"
        )
    return dataset


def _open_set(directory: Path, name: str, metadata: Metadata) -> PuzzleSet:
    arrays = {}
    for key in _FIELDS:
        file = directory / f"{name}__{key}.npy"
        _require_inside(directory.parent, file)
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
    # All values fit by now. Differences of unsigned integers would not be what they look like.
    indices = (array.astype(np.int64) for array in (puzzle_indices, group_indices, identifiers))
    return PuzzleSet(name, inputs, labels, *indices)


def _divides(indices: np.ndarray, count: int) -> bool:
    """Whether ``indices`` are the ends of consecutive parts of ``count`` things."""
    return bool(
        indices.ndim == 1
        and len(indices) > 0
        and indices[0] == 0
        and indices[-1] == count
        and (indices[1:] >= indices[:-1]).all()
    )


def _load(path: Path) -> np.ndarray:
    """The array in ``path``, memory-mapped: what its header claims allocates nothing."""
    try:
        with np.errstate(over="ignore"):  # of a shape beyond 64 bits, which is refused after all
            return np.lib.format.open_memmap(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; build the data set again") from None
    except Exception as error:  # bytes that are no array lead the reader into errors of any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as a NumPy array ({reason}); build the data set again") from None


def _require_inside(folder: Path, file: Path) -> None:
    """Refuse what a data folder from elsewhere could make us read: files outside it, pipes, devices.

    The hub's cache may be read: its snapshots are links into the folder ``blobs`` beside them.

    Raises:
        InputError: ``file`` leads out of ``folder`` by links, or is no regular file. (If it is missing, nothing.)
    """
    root, target = folder.resolve(), file.resolve()
    is_blob = target.parent.name == "blobs" and root.is_relative_to(target.parent.parent / "snapshots")
    if not target.is_relative_to(root) and not is_blob:
        raise InputError(f"{file} leads out of its data folder, to {target}; copy that file into the folder")
    if target.exists() and not target.is_file():
        raise InputError(f"{file} is no regular file; build the data set again")


@dataclass
class SetBuilder:
    """Collects the examples of one set, in the order example, puzzle, group."""

    inputs: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    puzzle_indices: list[int] = field(default_factory=lambda: [0])
    group_indices: list[int] = field(default_factory=lambda: [0])
    puzzle_identifiers: list[int] = field(default_factory=list)
    num_examples: int = 0

    def add_example(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Add one example of the current puzzle: two sequences of tokens."""
        self._add(np.asarray(inputs, np.uint8).reshape(1, -1), np.asarray(labels, np.uint8).reshape(1, -1))

    def add_puzzles(self, inputs: np.ndarray, labels: np.ndarray, per_group: int = 1, identifier: int = 0) -> None:
        """Add ``[n, seq_len]`` tokens as n puzzles of one example, each ``per_group`` in a row as a group.

        Raises:
            ValueError: n is no multiple of ``per_group``, or a puzzle or group is still open.
        """
        if len(inputs) % per_group or self.puzzle_indices[-1] != self.num_examples:
            raise ValueError(f"add_puzzles: {len(inputs)} puzzles in groups of {per_group}, or a puzzle still open")
        first_example, first_puzzle = self.num_examples, len(self.puzzle_identifiers)
        if self.group_indices[-1] != first_puzzle:
            raise ValueError("add_puzzles: the group before is still open; call end_group")
        self._add(np.asarray(inputs, np.uint8), np.asarray(labels, np.uint8))
        count = len(inputs)
        self.puzzle_indices.extend(range(first_example + 1, first_example + count + 1))
        self.puzzle_identifiers.extend([identifier] * count)
        self.group_indices.extend(range(first_puzzle + per_group, first_puzzle + count + 1, per_group))

    def _add(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.inputs.append(inputs)
        self.labels.append(labels)
        self.num_examples += len(inputs)

    def end_puzzle(self, identifier: int = 0) -> None:
        """Close the current puzzle."""
        self.puzzle_indices.append(self.num_examples)
        self.puzzle_identifiers.append(identifier)

    def end_group(self) -> None:
        """Close the current group."""
        self.group_indices.append(len(self.puzzle_identifiers))

    def arrays(self, seq_len: int) -> dict[str, np.ndarray]:
        """The five arrays of the set, by field name."""
        empty = np.zeros((0, seq_len), np.uint8)
        return {
            "inputs": np.concatenate([empty, *self.inputs]),
            "labels": np.concatenate([empty, *self.labels]),
            "puzzle_indices": np.asarray(self.puzzle_indices, np.int32),
            "group_indices": np.asarray(self.group_indices, np.int32),
            "puzzle_identifiers": np.asarray(self.puzzle_identifiers, np.int32),
        }

    def save(self, directory: Path, name: str, seq_len: int) -> None:
        """Write the set's files, ``<directory>/<name>__*.npy``."""
        for key, array in self.arrays(seq_len).items():
            np.save(directory / f"{name}__{key}.npy", array)


def write_dataset(
    folder: Path | str,
    splits: dict[str, dict[str, SetBuilder]],
    *,
    vocab_size: int,
    seq_len: int,
    identifiers: Sequence[str] = ("<blank>",),
    overwrite: bool = False,
    files: dict[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Write a data folder, complete or not at all.

    Args:
        folder: the new folder.
        splits: for ``train`` and ``test``, the sets by name.
        vocab_size: number of token values; 0 pads and, as a label, is ignored.
        seq_len: tokens in a sequence.
        identifiers: names of the puzzle identifiers; the first is the blank one.
        overwrite: replace a folder that exists.
        files: more JSON files for the folder, by name.
        extra: more keys for ``dataset.json`` (``task``).

    Raises:
        InputError: the folder exists, or a split has no example.
    """
    for split, sets in splits.items():
        if not any(builder.num_examples for builder in sets.values()):
            raise InputError(f"{folder}: the {split} split would have no example; give more puzzles")
    with folder_written_beside(folder, overwrite) as part:
        (part / "identifiers.json").write_text(json.dumps(list(identifiers)))
        for name, value in (files or {}).items():
            (part / name).write_text(json.dumps(value))
        for split, sets in splits.items():
            (part / split).mkdir()
            puzzles = sum(len(builder.puzzle_identifiers) for builder in sets.values())
            metadata = Metadata(
                pad_id=0,
                ignore_label_id=0,
                blank_identifier_id=0,
                vocab_size=vocab_size,
                seq_len=seq_len,
                num_puzzle_identifiers=len(identifiers),
                total_groups=sum(len(builder.group_indices) - 1 for builder in sets.values()),
                mean_puzzle_examples=sum(builder.num_examples for builder in sets.values()) / puzzles,
                total_puzzles=puzzles,
                sets=list(sets),
                **extra,
            )
            (part / split / "dataset.json").write_text(metadata.model_dump_json(indent=2) + "\n")
            for name, builder in sets.items():
                builder.save(part / split, name, seq_len)

"""One split of a data folder: its metadata and its sets."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from hrm.data.format.metadata import Metadata
from hrm.errors import InputError
from hrm.files import read_json


@dataclass(frozen=True, repr=False)
class PuzzleSet:
    """The arrays of one set.

    Attributes:
        inputs, labels: ``[examples, seq_len]`` tokens, memory-mapped, of any integer dtype.
        puzzle_indices: ``[puzzles + 1]`` int64; puzzle i holds the examples ``[i]`` up to, not including, ``[i + 1]``.
        group_indices: ``[groups + 1]`` int64; group g holds the puzzles ``[g]`` up to, not including, ``[g + 1]``.
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

    def __repr__(self) -> str:
        return (
            f"PuzzleSet({self.name!r}, {self.num_examples:,} examples, {self.num_puzzles:,} puzzles, "
            f"{self.num_groups:,} groups, seq_len {self.inputs.shape[1]}, {self.inputs.dtype})"
        )


@dataclass(frozen=True, repr=False)
class PuzzleDataset:
    """One split of a data folder, as :func:`open_dataset` returns it."""

    folder: Path
    split: str
    metadata: Metadata
    sets: tuple[PuzzleSet, ...]

    @property
    def num_examples(self) -> int:
        return sum(puzzle_set.num_examples for puzzle_set in self.sets)

    @property
    def num_puzzles(self) -> int:
        return sum(puzzle_set.num_puzzles for puzzle_set in self.sets)

    @property
    def num_groups(self) -> int:
        return sum(puzzle_set.num_groups for puzzle_set in self.sets)

    def identifiers(self) -> list[str]:
        """Names of the puzzle identifiers, by identifier; 0 is ``<blank>``.

        Raises:
            InputError: ``identifiers.json`` is missing or is not a list of names.
        """
        names = read_json(self.file("identifiers.json"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{self.folder / 'identifiers.json'} is not a list of names; build the data set again")
        return names

    def file(self, name: str) -> Path:
        """The path of a file in the folder. The file may be missing.

        Raises:
            InputError: the path leads out of the folder.
        """
        require_inside(self.folder, self.folder / name)
        return self.folder / name

    def _facts(self) -> dict[str, str]:
        """What to show of the split, by name."""
        return {
            "folder": str(self.folder),
            "split": self.split,
            "task": self.metadata.task or "not named",
            "examples": f"{self.num_examples:,}",
            "puzzles": f"{self.num_puzzles:,}",
            "groups": f"{self.num_groups:,}",
            "tokens in a sequence": f"{self.metadata.seq_len:,}",
            "vocabulary": f"{self.metadata.vocab_size:,}",
        }

    def __repr__(self) -> str:
        return f"PuzzleDataset({', '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self._facts().items())
        return f"<table>{''.join(rows)}</table>"


def require_inside(folder: Path, file: Path) -> None:
    """Refuse a file outside its data folder, a pipe or a device: a downloaded folder must not make us read those.

    Files of the hub's cache are allowed: its snapshots are links into the folder ``blobs`` beside them.

    Raises:
        InputError: ``file`` leads out of ``folder`` through links, or is not a regular file. A missing file passes.
    """
    root, target = folder.resolve(), file.resolve()
    is_blob = target.parent.name == "blobs" and root.is_relative_to(target.parent.parent / "snapshots")
    if not target.is_relative_to(root) and not is_blob:
        raise InputError(f"{file} leads out of its data folder, to {target}; copy that file into the folder")
    if target.exists() and not target.is_file():
        raise InputError(f"{file} is not a regular file; build the data set again")

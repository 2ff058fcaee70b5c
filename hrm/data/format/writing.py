"""Write a data folder, from arrays or set by set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ValidationError

from hrm.data.format.metadata import Metadata
from hrm.data.task import PuzzleTask
from hrm.errors import InputError, describe
from hrm.files import folder_written_beside


@dataclass(repr=False)
class SetBuilder:
    """Collects the examples of one set, in the order example, puzzle, group.

    Use it where a puzzle has several examples, a group several puzzles, or a puzzle an identifier; otherwise give
    :func:`write_dataset` two arrays. Tokens are non-negative integers of any dtype; they are stored in uint8 if they
    fit, else in the narrowest unsigned dtype.
    """

    inputs: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    puzzle_indices: list[int] = field(default_factory=lambda: [0])
    group_indices: list[int] = field(default_factory=lambda: [0])
    puzzle_identifiers: list[int] = field(default_factory=list)
    num_examples: int = 0

    def __repr__(self) -> str:
        return (
            f"SetBuilder({self.num_examples:,} examples, {len(self.puzzle_identifiers):,} puzzles, "
            f"{len(self.group_indices) - 1:,} groups)"
        )

    def add_example(self, inputs: ArrayLike, labels: ArrayLike) -> None:
        """Add one example, ``[seq_len]`` tokens each, to the current puzzle."""
        self._add(np.asarray(inputs).reshape(1, -1), np.asarray(labels).reshape(1, -1))

    def add_puzzles(self, inputs: ArrayLike, labels: ArrayLike, per_group: int = 1, identifier: int = 0) -> None:
        """Add n puzzles of one example each; every ``per_group`` consecutive puzzles form a group.

        Args:
            inputs, labels: ``[n, seq_len]`` tokens.
            per_group: puzzles in a group.
            identifier: the puzzle identifier of all of them.

        Raises:
            ValueError: n is not a multiple of ``per_group``, a puzzle or a group is still open, or the arrays do not
                hold tokens.
        """
        inputs, labels = np.asarray(inputs), np.asarray(labels)
        if len(inputs) % per_group or self.puzzle_indices[-1] != self.num_examples:
            raise ValueError(f"add_puzzles: {len(inputs)} puzzles in groups of {per_group}, or a puzzle still open")
        first_example, first_puzzle = self.num_examples, len(self.puzzle_identifiers)
        if self.group_indices[-1] != first_puzzle:
            raise ValueError("add_puzzles: the group before is still open; call end_group")
        self._add(inputs, labels)
        count = len(inputs)
        self.puzzle_indices.extend(range(first_example + 1, first_example + count + 1))
        self.puzzle_identifiers.extend([identifier] * count)
        self.group_indices.extend(range(first_puzzle + per_group, first_puzzle + count + 1, per_group))

    def _add(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        if inputs.ndim != 2 or inputs.shape != labels.shape:
            raise ValueError(
                f"inputs of shape {list(inputs.shape)}, labels of shape {list(labels.shape)}; expected the same "
                "[examples, seq_len]"
            )
        self.inputs.append(_as_tokens("inputs", inputs))
        self.labels.append(_as_tokens("labels", labels))
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


def _as_tokens(name: str, values: np.ndarray) -> np.ndarray:
    """``values`` in uint8, or in the narrowest unsigned dtype that holds them."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "biuf" or (values != np.trunc(values)).any():
        raise ValueError(f"{name} of {values.dtype} hold values that are not integers; expected tokens")
    if values.size and values.min() < 0:
        raise ValueError(f"{name} hold token {values.min()}, expected 0 or more (0 is padding, and an ignored label)")
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


Split = SetBuilder | tuple[ArrayLike, ArrayLike] | Mapping[str, SetBuilder]
"""One split: a set, the arrays ``(inputs, labels)``, or several sets by name."""


def write_dataset(
    folder: Path | str,
    splits: Mapping[str, Split],
    *,
    task: PuzzleTask | str | None = None,
    vocab_size: int | None = None,
    seq_len: int | None = None,
    identifiers: Sequence[str] = ("<blank>",),
    overwrite: bool = False,
    files: Mapping[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Write a data folder, complete or not at all.

    ``hrm.write_dataset("data", {"train": (inputs, labels), "test": (test_inputs, test_labels)}, task=MyTask())`` makes
    each row a puzzle and a group.

    Args:
        folder: the new folder.
        splits: by name, usually ``train`` and ``test``: the arrays ``(inputs, labels)``, ``[n, seq_len]`` integer
            tokens each, a :class:`SetBuilder`, or several of them by the set's name. Token 0 is padding; labels of 0
            are ignored.
        task: the task, which gives ``vocab_size`` and ``seq_len`` and is named in ``dataset.json``; or only its name.
        vocab_size: number of token values, 0 included; required without a task.
        seq_len: tokens in a sequence; by default those of the first example.
        identifiers: names of the puzzle identifiers; the first one is blank.
        overwrite: replace an existing folder.
        files: more JSON files for the folder, by name.
        extra: more keys for ``dataset.json``.

    Raises:
        InputError: the folder exists, a split has no example, the arrays are not tokens of one shape, a token is not
            below ``vocab_size``, or a puzzle identifier has no name.
    """
    name = task.name if isinstance(task, PuzzleTask) else task
    if isinstance(task, PuzzleTask):
        vocab_size, seq_len = task.vocab_size, task.seq_len
    if vocab_size is None:
        raise InputError(f"{folder}: the vocabulary is missing; give vocab_size, or a PuzzleTask as task")
    sets = {split: _sets_of(f"{folder}: the {split} split", value) for split, value in splits.items()}
    if seq_len is None:
        first = next(builder for builders in sets.values() for builder in builders.values() if builder.inputs)
        seq_len = first.inputs[0].shape[1]
    for split, builders in sets.items():
        for builder in builders.values():
            _require_fit(f"{folder}: the {split} split", builder, vocab_size, seq_len, len(identifiers))
    if name is not None:
        extra = {"task": name} | extra
    with folder_written_beside(folder, overwrite) as part:
        (part / "identifiers.json").write_text(json.dumps(list(identifiers)))
        for file, value in (files or {}).items():
            (part / file).write_text(json.dumps(value))
        for split, builders in sets.items():
            (part / split).mkdir()
            try:
                metadata = _metadata(builders, vocab_size, seq_len, len(identifiers), extra)
            except ValidationError as error:
                raise InputError(f"{folder}: {describe(error)}") from None
            (part / split / "dataset.json").write_text(metadata.model_dump_json(indent=2) + "\n")
            for set_name, builder in builders.items():
                builder.save(part / split, set_name, seq_len)


def _sets_of(place: str, split: Split) -> Mapping[str, SetBuilder]:
    """The sets of a split by name; at least one of them has an example."""
    if isinstance(split, tuple):
        if len(split) != 2:
            raise InputError(f"{place} has {len(split)} arrays, expected 2: (inputs, labels)")
        arrays, split = split, SetBuilder()
        try:
            split.add_puzzles(*arrays)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
    sets = {"all": split} if isinstance(split, SetBuilder) else split
    if not any(builder.num_examples for builder in sets.values()):
        raise InputError(f"{place} would have no example; give more puzzles")
    return sets


def _metadata(
    builders: Mapping[str, SetBuilder], vocab_size: int, seq_len: int, identifiers: int, extra: dict[str, Any]
) -> Metadata:
    puzzles = sum(len(builder.puzzle_identifiers) for builder in builders.values())
    return Metadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=identifiers,
        total_groups=sum(len(builder.group_indices) - 1 for builder in builders.values()),
        mean_puzzle_examples=sum(builder.num_examples for builder in builders.values()) / puzzles,
        total_puzzles=puzzles,
        sets=list(builders),
        **extra,
    )


def _require_fit(place: str, builder: SetBuilder, vocab_size: int, seq_len: int, identifiers: int) -> None:
    """Raise an InputError unless the set has sequences of ``seq_len``, and tokens and identifiers below their count."""
    largest = max(builder.puzzle_identifiers, default=0)
    if largest >= identifiers:
        raise InputError(
            f"{place} has puzzle identifier {largest}, expected 0 to {identifiers - 1}; give its name in identifiers"
        )
    for kind, parts in (("inputs", builder.inputs), ("labels", builder.labels)):
        for tokens in parts:
            if tokens.shape[1] != seq_len:
                raise InputError(f"{place} has sequences of {tokens.shape[1]} tokens, expected {seq_len} (seq_len)")
            largest = tokens.max(initial=0)
            if largest >= vocab_size:
                raise InputError(f"{place}: the {kind} hold token {largest}, expected 0 to {vocab_size - 1}")

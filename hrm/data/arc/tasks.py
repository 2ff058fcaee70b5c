"""A task: demonstrations and tests, read from JSON."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrm.data.arc.grids import COLOURS, SIDE
from hrm.errors import InputError

SEPARATOR = "|||"
"""Separates a task's name from the description of its augmentation."""

Pair = tuple[np.ndarray, np.ndarray | None]
"""Input and output grid; None where the output is not known."""


@dataclass(frozen=True, repr=False)
class ArcTask:
    """A task: its demonstrations and tests, and its subset (``training``, ``evaluation``, ...)."""

    name: str
    subset: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    def __repr__(self) -> str:
        counts = f"{len(self.train)} demonstrations, {len(self.test)} test{'s' * (len(self.test) != 1)}"
        return f"ArcTask({self.name!r}, subset {self.subset!r}, {counts})"

    def to_json(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """The task as the JSON value of a task file, without unknown outputs."""

        def pairs(pairs: tuple[Pair, ...]) -> list[dict[str, list[list[int]]]]:
            return [
                {key: grid.tolist() for key, grid in zip(("input", "output"), pair, strict=True) if grid is not None}
                for pair in pairs
            ]

        return {"train": pairs(self.train), "test": pairs(self.test)}


def read_grid(value: Any, where: str, side: int = SIDE) -> np.ndarray:
    """Read a grid, ``[rows, columns]`` uint8, from its JSON value.

    Raises:
        InputError: the value is not a rectangle of 1 to ``side`` rows and columns of colours 0 to 9; the message begins
            with ``where``.
    """
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        raise InputError(
            f"{where} is not a grid; expected a list of rows, each a list of colours, such as [[0, 1], [2, 3]]"
        )
    rows, columns = len(value), len(value[0])
    for index, row in enumerate(value, 1):
        if len(row) != columns:
            raise InputError(
                f"{where}: row {index} has {len(row)} cells, row 1 has {columns}; all rows must have the same length"
            )
        for cell in row:
            if type(cell) is not int or not 0 <= cell < COLOURS:  # JSON's true is an int to Python
                raise InputError(
                    f"{where}: row {index} has the colour {json.dumps(cell)[:60]}; expected an integer from 0 to 9"
                )
    if rows > side or columns > side:
        raise InputError(f"{where} has {rows} rows and {columns} columns; expected at most {side} of each")
    return np.array(value, np.uint8)


def _read_pairs(task: dict[str, Any], key: str, kind: str, where: str, solved: bool) -> tuple[Pair, ...]:
    examples = task.get(key)
    if not isinstance(examples, list) or not examples:
        came = f"'{key}' {json.dumps(examples)[:60]}" if key in task else f"no '{key}'"
        raise InputError(f"{where} has {came}; expected a list of at least one {kind}")
    pairs = []
    for number, example in enumerate(examples, 1):
        place = f"{where}, {kind} {number}"
        if not isinstance(example, dict):
            raise InputError(
                f"{place} is {json.dumps(example)[:60]}; expected an object with 'input' and 'output' grids"
            )
        for needed in ("input", "output") if solved else ("input",):
            if example.get(needed) is None:
                raise InputError(f"{place} has no '{needed}' grid")
        output = example.get("output")
        pairs.append(
            (
                read_grid(example["input"], f"{place}, input"),
                None if output is None else read_grid(output, f"{place}, output"),
            )
        )
    return tuple(pairs)


def read_task(name: str, subset: str, value: Any, where: str) -> ArcTask:
    """Read a task from the JSON value of its file. Outputs of tests may be missing, outputs of demonstrations may not.

    A list of pairs, as re-arc writes it, is a task whose last pair is the test.

    Raises:
        InputError: the value is not a task; the message begins with ``where``.
    """
    if not name or SEPARATOR in name:
        raise InputError(
            f"{where}: a task's name must not be empty or contain '{SEPARATOR}', which marks augmentations"
        )
    if isinstance(value, list) and len(value) > 1:
        value = {"train": value[:-1], "test": value[-1:]}
    if not isinstance(value, dict):
        raise InputError(
            f"{where} is {json.dumps(value)[:60]}; expected an object with 'train' and 'test', "
            "or a list of two or more pairs (re-arc)"
        )
    train = _read_pairs(value, "train", "demonstration", where, solved=True)
    return ArcTask(name, subset, train, _read_pairs(value, "test", "test", where, solved=False))

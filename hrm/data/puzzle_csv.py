"""Puzzles in the published CSV schema ``source,question,answer,rating``, plain or gzipped."""

import csv
import gzip
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from hrm.data.task import PuzzleTask
from hrm.errors import InputError

_BLOCK = 16384  # rows encoded at once: the text of millions of rows never lies in memory as Python strings
_SHOWN = 5  # skipped rows whose reason is kept


Task = TypeVar("Task", bound="CsvTask")


class CsvTask(PuzzleTask):
    """A task whose puzzles are strings of one character a cell."""

    symbols: ClassVar[dict[str, int]]
    """The token of each character."""
    lengths: ClassVar[str]
    """The lengths a puzzle can have, in words."""

    @classmethod
    @abstractmethod
    def of_length(cls: type[Task], length: int) -> Task | None:
        """The task whose puzzles have so many cells, or None."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Rows and columns."""

    @abstractmethod
    def solves(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """:meth:`check` of many: ``[n, seq_len]`` tokens both -> ``[n]`` bool."""

    def place(self, index: int) -> str:
        """The cell of ``index`` in words."""
        return f"row {index // self.size + 1} column {index % self.size + 1}"


@dataclass(frozen=True)
class Puzzles:
    """n puzzles with their answers.

    Attributes:
        inputs, labels: ``[n, seq_len]`` uint8 tokens of question and answer.
        ratings: ``[n]`` int64 difficulty.
        lines: ``[n]`` int64 lines of the file they came from, or 0.
    """

    inputs: np.ndarray
    labels: np.ndarray
    ratings: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    @classmethod
    def concatenate(cls, parts: list["Puzzles"], seq_len: int) -> "Puzzles":
        """All of ``parts`` in turn; of none at all, no puzzles of ``seq_len`` cells."""
        cells, numbers = np.zeros((0, seq_len), np.uint8), np.zeros(0, np.int64)
        columns = zip(*((part.inputs, part.labels, part.ratings, part.lines) for part in parts), strict=True)
        joined = [np.concatenate(column) for column in columns]
        return cls(*joined) if joined else cls(cells, cells, numbers, numbers)

    def take(self, which: np.ndarray) -> "Puzzles":
        """Those of an index or mask array."""
        return Puzzles(self.inputs[which], self.labels[which], self.ratings[which], self.lines[which])

    def sample(self, count: int | None, rng: np.random.Generator) -> "Puzzles":
        """``count`` random ones in their order, or all where there are no more."""
        if count is None or count >= len(self):
            return self
        return self.take(np.sort(rng.choice(len(self), count, replace=False)))


@dataclass
class BadRows:
    """What is done with a malformed row: the first one is an error, or all are counted and left out."""

    skip: bool = False
    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def report(self, path: Path, line: int, reason: str) -> None:
        """Note one row.

        Raises:
            InputError: rows are not to be skipped.
        """
        message = f"{path}:{line}: {reason}"
        if not self.skip:
            raise InputError(f"{message}; correct the row, or leave such rows out with --skip-bad")
        self.count += 1
        if len(self.reasons) < _SHOWN:
            self.reasons.append(message)


def row_keys(tokens: np.ndarray) -> np.ndarray:
    """``[n, seq_len]`` uint8 -> ``[n]`` uint64; different rows get different keys but for an accident of 2^-64."""
    weights = np.random.default_rng(0).integers(0, 2**64, tokens.shape[1], np.uint64)
    keys = np.zeros(len(tokens), np.uint64)
    for weight, column in zip(weights, tokens.T, strict=True):
        keys += weight * column
    return keys


def find_split(folder: Path, split: str) -> Path:
    """``<split>.csv`` or ``<split>.csv.gz`` in ``folder``.

    Raises:
        InputError: neither is there.
    """
    for name in (f"{split}.csv", f"{split}.csv.gz"):
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(path.name for path in folder.glob("*.csv*"))) or "no CSV file"
    raise InputError(f"{folder} has {found}; expected {split}.csv or {split}.csv.gz (or give one file to --csv)")


def task_of_file(path: Path, task_type: type[Task]) -> Task:
    """The task that fits the first puzzle in ``path`` whose length fits any.

    Raises:
        InputError: the file cannot be read, lacks a column, or no puzzle fits.
    """
    first: tuple[int, int] | None = None
    bad = BadRows(skip=True)
    for line, question, _, _ in _rows(path, bad):
        task = task_type.of_length(len(question))
        if task is not None:
            return task
        first = first or (line, len(question))
    if first is None:
        raise InputError(bad.reasons[0] if bad.reasons else f"{path} has no puzzle below its header")
    raise InputError(f"{path}:{first[0]}: question has {first[1]} characters, expected {task_type.lengths}")


def read_puzzles(path: Path, task: CsvTask, bad: BadRows, progress: Callable[[int], None] | None = None) -> Puzzles:
    """Read and verify every puzzle in ``path``: lengths, characters, and that the answer solves the question.

    Args:
        path: ``.csv`` or ``.csv.gz`` with the columns question, answer and, if it likes, rating.
        task: the task of all its puzzles.
        bad: what is done with malformed rows.
        progress: called with the number of rows done so far.

    Raises:
        InputError: the file cannot be read, or a row is malformed (with its line) and ``bad`` does not skip.
    """
    table = np.zeros(256, np.uint8)
    for character, token in task.symbols.items():
        table[ord(character)] = token
    blocks: list[Puzzles] = []
    rows: list[tuple[int, str, str, int]] = []
    done = 0

    def flush() -> None:
        nonlocal done
        done += len(rows)
        fit = []
        for row in rows:
            lengths = {"question": len(row[1]), "answer": len(row[2])}
            wrong = next((name for name, length in lengths.items() if length != task.seq_len), None)
            if wrong:
                bad.report(path, row[0], f"{wrong} has {lengths[wrong]} characters, expected {task.seq_len}")
            else:
                fit.append(row)
        tokens = [
            table[np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)].reshape(-1, task.seq_len)
            for texts in ([row[1] for row in fit], [row[2] for row in fit])
        ]
        good = (tokens[0] != 0).all(1) & (tokens[1] != 0).all(1)
        good[good] = task.solves(tokens[0][good], tokens[1][good])
        for index in np.flatnonzero(~good):
            line, *texts = fit[index][:3]
            bad.report(path, line, _fault(task, texts, tokens[0][index], tokens[1][index]))
        meta = np.array([(row[3], row[0]) for row in fit], np.int64).reshape(-1, 2)
        blocks.append(Puzzles(tokens[0][good], tokens[1][good], meta[good, 0], meta[good, 1]))
        rows.clear()
        if progress:
            progress(done)

    for row in _rows(path, bad):
        rows.append(row)
        if len(rows) == _BLOCK:
            flush()
    flush()
    return Puzzles.concatenate(blocks, task.seq_len)


def _fault(task: CsvTask, texts: list[str], inputs: np.ndarray, answer: np.ndarray) -> str:
    for name, text, tokens in zip(("question", "answer"), texts, (inputs, answer), strict=True):
        for index in np.flatnonzero(tokens == 0):
            allowed = "".join(task.symbols)
            return f"{name} has {text[index]!r} at {task.place(int(index))}, expected one of {allowed!r}"
    return f"the answer does not solve the question: {task.check(inputs, answer)}"


def _rows(path: Path, bad: BadRows) -> Iterator[tuple[int, str, str, int]]:
    """Line, question, answer and rating of each row."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            for name in ("question", "answer"):
                if name not in header:
                    found = ",".join(header) or "an empty file"
                    raise InputError(f"{path}:1: no column '{name}' in {found}; expected source,question,answer,rating")
            question, answer = header.index("question"), header.index("answer")
            rating = header.index("rating") if "rating" in header else None
            for row in reader:
                if len(row) != len(header):
                    if row:
                        bad.report(path, reader.line_num, f"{len(row)} fields, expected {len(header)}")
                    continue
                difficulty = row[rating] if rating is not None else "0"
                try:
                    number = int(np.int64(int(difficulty)))
                except (ValueError, OverflowError):
                    bad.report(path, reader.line_num, f"rating is {difficulty!r}, expected a whole number")
                    continue
                yield reader.line_num, row[question], row[answer], number
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a CSV file") from None
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as {'gzipped ' * (path.suffix == '.gz')}CSV: {error}") from None

"""Puzzles in the published CSV schema ``source,question,answer,rating``, plain or gzipped.

Other common names of these columns are accepted, in upper or lower case.
"""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hrm.data.csv_task import CsvTask, Task
from hrm.data.puzzles import Puzzles
from hrm.errors import InputError
from hrm.files import encoding_of, visible

_COLUMNS = {
    "question": ("question", "questions", "puzzle", "puzzles", "quiz", "quizzes"),
    "answer": ("answer", "answers", "solution", "solutions"),
    "rating": ("rating", "difficulty"),
}
_DELIMITERS = ",;\t"
_LONGEST = 1 << 20  # characters in a line; a file of a few kilobytes can unpack to a line of gigabytes
_BLOCK = 16384  # rows encoded at once, so that the text of millions of rows is never in memory as Python strings
_SHOWN = 5  # number of skipped rows whose reason is kept


@dataclass
class BadRows:
    """How malformed rows are handled: the first one is an error, or all are counted and left out."""

    skip: bool = False
    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def report(self, path: Path, line: int, reason: str) -> None:
        """Report one malformed row.

        Raises:
            InputError: ``skip`` is False.
        """
        message = f"{path}:{line}: {reason}"
        if not self.skip:
            raise InputError(f"{message}; correct the row, or skip malformed rows with --skip-bad")
        self.count += 1
        if len(self.reasons) < _SHOWN:
            self.reasons.append(message)


def is_csv(name: str) -> bool:
    """Whether a file of this name is CSV, plain or gzipped."""
    return name.lower().removesuffix(".gz").endswith(".csv")


def find_split(folder: Path, split: str) -> Path:
    """Find ``<split>.csv`` or ``<split>.csv.gz`` in ``folder``.

    Raises:
        InputError: the folder has neither.
    """
    files = [path for path in visible(folder) if is_csv(path.name) and path.is_file()]
    for path in files:
        if path.name.lower() in (f"{split}.csv", f"{split}.csv.gz"):
            return path
    names = ", ".join(path.name for path in files) or "no CSV file"
    raise InputError(f"{folder} has {names}; expected {split}.csv or {split}.csv.gz (or give one file to --csv)")


def task_of_file(path: Path, task_type: type[Task]) -> Task:
    """The task of the first puzzle in ``path`` whose length fits a task.

    Raises:
        InputError: the file cannot be read, a column is missing, or no puzzle fits.
    """
    first: tuple[int, int] | None = None
    bad = BadRows(skip=True)
    for line, question, _, _ in _rows(path, bad):
        task = task_type.of_text(question)
        if task is not None:
            return task
        first = first or (line, len(question))
    if first is None:
        raise InputError(bad.reasons[0] if bad.reasons else f"{path} has no puzzle below its header")
    raise InputError(f"{path}:{first[0]}: question has {first[1]} characters, expected {task_type.lengths}")


def read_puzzles(path: Path, task: CsvTask, bad: BadRows, progress: Callable[[int], None] | None = None) -> Puzzles:
    """Read every puzzle in ``path`` and verify it: lengths, characters, and that the answer solves the question.

    Args:
        path: ``.csv`` or ``.csv.gz`` with the columns question, answer and optionally rating.
        task: the task of all its puzzles.
        bad: how malformed rows are handled.
        progress: called with the number of rows read so far.

    Raises:
        InputError: the file cannot be read, or a row is malformed and ``bad`` does not skip it; the message names the
            line.
    """
    rows, blocks, done = _rows(path, bad), [], 0
    while block := list(islice(rows, _BLOCK)):
        blocks.append(_verified(path, task, block, bad))
        done += len(block)
        if progress:
            progress(done)
    return Puzzles.concatenate(blocks, task.seq_len)


def _verified(path: Path, task: CsvTask, rows: list["_Row"], bad: BadRows) -> Puzzles:
    """The well-formed ``rows`` whose answer solves the question; the others are reported to ``bad``."""
    seq_len = task.seq_len
    fit = []
    for line, question, answer, rating in rows:
        row = _Row(line, _cells(task, seq_len, question), _cells(task, seq_len, answer), rating)
        if len(row.question) == len(row.answer) == seq_len:
            fit.append(row)
        else:
            name = "answer" if len(row.question) == seq_len else "question"
            bad.report(path, line, f"{name} has {len(getattr(row, name))} characters, expected {seq_len}")
    inputs = _tokens(task, [row.question for row in fit])
    labels = _tokens(task, [row.answer for row in fit])
    good = (inputs != 0).all(1) & (labels != 0).all(1)
    good[good] = task.solves(inputs[good], labels[good])
    for index in np.flatnonzero(~good):
        bad.report(path, fit[index].line, _fault(task, fit[index], inputs[index], labels[index]))
    numbers = np.array([(row.rating, row.line) for row in fit], np.int64).reshape(-1, 2)[good]
    return Puzzles(inputs[good], labels[good], numbers[:, 0], numbers[:, 1])


def _cells(task: CsvTask, seq_len: int, text: str) -> str:
    if len(text) == seq_len and "\n" not in text and "\r" not in text:
        return text  # the published form needs no parsing
    return task.one_line(text)


def _tokens(task: CsvTask, texts: list[str]) -> np.ndarray:
    """``[n, seq_len]`` uint8 tokens of texts of this length; 0 for characters without a token."""
    table = np.zeros(256, np.uint8)
    for character, token in task.symbols.items():
        table[ord(character)] = token
    return table[np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)].reshape(-1, task.seq_len)


def _fault(task: CsvTask, row: "_Row", inputs: np.ndarray, answer: np.ndarray) -> str:
    """Why ``answer`` does not solve ``inputs``, the tokens of the row."""
    for name, tokens in (("question", inputs), ("answer", answer)):
        for index in np.flatnonzero(tokens == 0):
            allowed = "".join(task.symbols)
            return f"{name} has {getattr(row, name)[index]!r} at {task.place(int(index))}, expected one of {allowed!r}"
    return f"the answer does not solve the question: {task.check(inputs, answer)}"


class _Row(NamedTuple):
    line: int
    question: str
    answer: str
    rating: int


def _rows(path: Path, bad: BadRows) -> Iterator[_Row]:
    zipped = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            text = io.TextIOWrapper(file, encoding_of(file.peek(2)), newline="")  # type: ignore[arg-type]
            table = Table(_lines(text), str(path), ("question", "answer"))
            question, answer, rating = (table.columns.get(name) for name in _COLUMNS)
            assert question is not None and answer is not None
            for line, row in table:
                if len(row) != table.width:
                    bad.report(path, line, f"{len(row)} fields, expected {table.width}")
                    continue
                difficulty = "" if rating is None else row[rating]
                number: int | None
                try:
                    number = math.floor(float(difficulty or 0))
                except (ValueError, OverflowError):
                    number = None
                if number is None or not -(2**63) <= number < 2**63:
                    bad.report(path, line, f"rating is {difficulty[:40]!r}, expected a number")
                    continue
                yield _Row(line, row[question], row[answer], number)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a CSV file") from None
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeError) as error:
        raise InputError(f"{path} cannot be read as {'gzipped ' * zipped}CSV: {error}") from None


def _lines(file: io.TextIOBase) -> Iterator[str]:
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST and line[-1] != "\n":
            raise csv.Error(f"a line has more than {_LONGEST} characters")
        yield line


class Table:
    """The rows of a CSV file below its header: pairs of a line number and the line's fields, without blank lines.

    Fields are separated by commas, semicolons or tabs, as in the header.

    Attributes:
        columns: the indices of the columns ``question``, ``answer`` and ``rating``, if they exist.
        width: number of fields that a row should have.

    Raises:
        InputError: one of the columns in ``needed`` is missing.
        csv.Error: the text is not CSV; also raised while the rows are read.
    """

    def __init__(self, lines: Iterable[str], place: str, needed: Iterable[str]):
        lines = iter(lines)
        first = next(lines, "")
        delimiter = next((one for one in _DELIMITERS if _column(first.split(one), "question") is not None), ",")
        self._reader = csv.reader(chain([first], lines), delimiter=delimiter)
        header = next(self._reader, [])
        self.width = len(header)
        indices = {name: _column(header, name) for name in _COLUMNS}
        self.columns = {name: column for name, column in indices.items() if column is not None}
        for name in needed:
            if name not in self.columns:
                columns = ",".join(header)[:200] or "an empty file"
                raise InputError(f"{place}:1: no column '{name}' in {columns}; expected source,question,answer,rating")

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        for row in self._reader:
            if row and (row[0].strip() or any(field.strip() for field in row)):
                yield self._reader.line_num, row


def _column(header: list[str], name: str) -> int | None:
    names = [field.strip().strip('"').lower() for field in header]
    return next((names.index(one) for one in _COLUMNS[name] if one in names), None)


def questions(place: str, text: str) -> list[tuple[str, str]]:
    """The questions in the text of a CSV file: pairs of ``<place>:<line>`` and the question as written.

    Raises:
        InputError: the text is not CSV, or has no column of questions, or no row.
    """
    try:
        table = Table(_lines(io.StringIO(text, newline="")), place, ["question"])
        column = table.columns["question"]
        puzzles = [(f"{place}:{line}", row[column] if column < len(row) else "") for line, row in table]
    except csv.Error as error:
        raise InputError(f"{place} cannot be read as CSV: {error}") from None
    if not puzzles:
        raise InputError(f"{place} has no puzzle below its header")
    return puzzles


def has_header(text: str) -> bool:
    """Whether the first line of ``text`` is the header of a CSV file of puzzles with two columns or more.

    A single word may be a title.
    """
    columns = [text[:1000].partition("\n")[0].split(delimiter) for delimiter in _DELIMITERS]
    return any(len(names) > 1 and _column(names, "question") is not None for names in columns)

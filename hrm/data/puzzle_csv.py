"""Puzzles in the published CSV schema ``source,question,answer,rating``, plain or gzipped.

Other names of these columns that are in use are taken as well, in upper or lower case.
"""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

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
_LONGEST = 1 << 20  # characters of a line; a file of a few kilobytes can unpack to a line of gigabytes
_BLOCK = 16384  # rows encoded at once: the text of millions of rows never lies in memory as Python strings
_SHOWN = 5  # skipped rows whose reason is kept


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


def is_csv(name: str) -> bool:
    """Whether a file of this name is CSV, plain or gzipped."""
    return name.lower().removesuffix(".gz").endswith(".csv")


def find_split(folder: Path, split: str) -> Path:
    """``<split>.csv`` or ``<split>.csv.gz`` in ``folder``.

    Raises:
        InputError: neither is there.
    """
    files = [path for path in visible(folder) if is_csv(path.name) and path.is_file()]
    for path in files:
        if path.name.lower() in (f"{split}.csv", f"{split}.csv.gz"):
            return path
    found = ", ".join(path.name for path in files) or "no CSV file"
    raise InputError(f"{folder} has {found}; expected {split}.csv or {split}.csv.gz (or give one file to --csv)")


def task_of_file(path: Path, task_type: type[Task]) -> Task:
    """The task that fits the first puzzle in ``path`` whose length fits any.

    Raises:
        InputError: the file cannot be read, lacks a column, or no puzzle fits.
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

    def cells(text: str) -> str:
        plain = len(text) == task.seq_len and "\n" not in text and "\r" not in text  # as published: all is said
        return text if plain else task.one_line(text)

    def flush() -> None:
        nonlocal done
        done += len(rows)
        fit = []
        for line, question, answer, rating in rows:
            row = line, cells(question), cells(answer), rating
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
                yield line, row[question], row[answer], number
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
    """The rows of a CSV file below its header: pairs of a line number and its fields, but for blank lines.

    Fields are separated by commas, or where the header's are, by semicolons or tabs.

    Attributes:
        columns: where ``question``, ``answer`` and ``rating`` are, as far as they are there.
        width: number of fields that a row should have.

    Raises:
        InputError: one of the columns in ``needed`` is missing.
        csv.Error: it is no CSV (while the rows are read, too).
    """

    def __init__(self, lines: Iterable[str], place: str, needed: Iterable[str]):
        lines = iter(lines)
        first = next(lines, "")
        delimiter = next((one for one in _DELIMITERS if _column(first.split(one), "question") is not None), ",")
        self._reader = csv.reader(chain([first], lines), delimiter=delimiter)
        header = next(self._reader, [])
        self.width = len(header)
        where = {name: _column(header, name) for name in _COLUMNS}
        self.columns = {name: column for name, column in where.items() if column is not None}
        for name in needed:
            if name not in self.columns:
                found = ",".join(header)[:200] or "an empty file"
                raise InputError(f"{place}:1: no column '{name}' in {found}; expected source,question,answer,rating")

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        for row in self._reader:
            if row and (row[0].strip() or any(field.strip() for field in row)):
                yield self._reader.line_num, row


def _column(header: list[str], name: str) -> int | None:
    names = [field.strip().strip('"').lower() for field in header]
    return next((names.index(one) for one in _COLUMNS[name] if one in names), None)


def questions(place: str, text: str) -> list[tuple[str, str]]:
    """The questions of a CSV file's ``text``: of each its place, ``<place>:<line>``, and the question as written.

    Raises:
        InputError: there is no column of questions, no row, or no CSV.
    """
    try:
        table = Table(_lines(io.StringIO(text, newline="")), place, ["question"])
        column = table.columns["question"]
        found = [(f"{place}:{line}", row[column] if column < len(row) else "") for line, row in table]
    except csv.Error as error:
        raise InputError(f"{place} cannot be read as CSV: {error}") from None
    if not found:
        raise InputError(f"{place} has no puzzle below its header")
    return found


def has_header(text: str) -> bool:
    """Whether the first line of ``text`` is the header of such a CSV file, of two columns or more.

    (One word alone may be a title.)
    """
    columns = [text[:1000].partition("\n")[0].split(delimiter) for delimiter in _DELIMITERS]
    return any(len(names) > 1 and _column(names, "question") is not None for names in columns)

"""The puzzles of ``hrm solve``: read from the command line, a file or standard input."""

import gzip
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hrm.errors import InputError
from hrm.files import decode

if TYPE_CHECKING:
    import numpy as np

    from hrm.data.task import PuzzleTask

MAX_BYTES = 128 << 20
"""Most bytes of puzzles read at once, unpacked: three quarters of a million Sudokus with their answers."""


@dataclass(frozen=True)
class Text:
    """The text of puzzles, and its place: a file, a line of a file, or empty for the command line."""

    place: str
    text: str


@dataclass(frozen=True)
class PuzzleInput:
    """A puzzle as ``[seq_len]`` uint8 tokens, or the reason why it could not be read; the other one is None."""

    text: Text
    tokens: "np.ndarray | None"
    error: str | None


def read_source(argument: str) -> Text:
    """Read the text that ``argument`` names: a file, standard input (``-``), or itself.

    Raises:
        InputError: the file cannot be read.
    """
    if argument == "-":
        return Text("standard input", _read("standard input", sys.stdin.buffer.read))
    if os.path.isdir(argument):
        raise InputError(f"{argument} is a folder, expected a puzzle or a file of puzzles")
    if not os.path.exists(argument):  # unlike Path.exists, it accepts names that are too long for a file
        return Text("", argument)
    opener = gzip.open if argument.lower().endswith(".gz") else open
    try:
        with opener(argument, "rb") as file:
            return Text(argument, _read(argument, file.read))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{argument} cannot be read ({error}); expected text, or CSV (.csv, .csv.gz)") from None


def _read(place: str, read: Callable[[int], bytes]) -> str:
    data = read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{place} has more than {MAX_BYTES >> 20} MB of text; split it, and solve the parts in turn")
    try:
        return decode(data)
    except UnicodeError as error:
        raise InputError(f"{place} cannot be read ({error}); expected text, or CSV (.csv, .csv.gz)") from None


def read_puzzles(task: "PuzzleTask", source: Text, one_only: bool) -> list[PuzzleInput]:
    """Read the puzzles of ``source``; those that cannot be read come with the reason.

    Args:
        task: reads each puzzle.
        source: the text of all puzzles.
        one_only: refuse several puzzles, because one is to be drawn.

    Raises:
        InputError: there is no puzzle, the puzzle on the command line cannot be read, or there are several and only one
            is allowed.
    """
    puzzles = []
    for one in _split(task, source):
        try:
            puzzles.append(PuzzleInput(one, task.parse(one.text), None))
        except InputError as error:
            if not one.place:
                shown = one.text if len(one.text) <= 40 else one.text[:37] + "..."
                raise InputError(f"{shown!r} is neither a file nor a puzzle: {error}") from None
            puzzles.append(PuzzleInput(one, None, str(error)))
    if one_only and len(puzzles) != 1:
        raise InputError(f"--gif and --png draw one puzzle, {source.place} has {len(puzzles)}; give a single puzzle")
    return puzzles


def _split(task: "PuzzleTask", source: Text) -> list[Text]:
    """The single puzzles of a CSV file, or of a text (:func:`hrm.data.puzzle_text.split_text`).

    Raises:
        InputError: there is none.
    """
    from hrm.data.puzzle_csv import has_header, is_csv, questions
    from hrm.data.puzzle_text import split_text

    if not source.place:
        return [source]
    split = questions if is_csv(source.place) or has_header(source.text) else partial(split_text, task)
    return [Text(place, text) for place, text in split(source.place, source.text)]

"""The file of ``hrm solve --out``: written part by part, so that a call that was killed can be resumed."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm.errors import InputError
from hrm.files import written_beside

if TYPE_CHECKING:
    from hrm.cli.puzzle_input import PuzzleInput
    from hrm.data.task import PuzzleTask

_NOT_IN_CSV = ("trace", "trajectories", "chosen")

Record = dict[str, Any]
"""A puzzle and its answer, as ``hrm solve --json`` prints them."""


class AnswerFile:
    """Answers on their way into a file: JSON lines in ``<path>.part``, until all puzzles are solved.

    Attributes:
        records: the answers of an earlier call that was resumed.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        """
        Raises:
            InputError: an earlier call left a part, and ``resume`` is not set.
        """
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        if self.part.exists() and not resume:
            raise InputError(
                f"{self.part} has answers of a call that did not end; add --resume to continue it, or remove the file"
            )
        self.records: list[Record] = self._read() if self.part.exists() else []

    def check(self, task: "PuzzleTask", puzzles: Sequence["PuzzleInput"]) -> None:
        """
        Raises:
            InputError: the answers of the earlier call are not those to the first ``puzzles``.
        """
        for number, (record, puzzle) in enumerate(zip(self.records, puzzles), 1):
            if record.get("puzzle") != text_of(task, puzzle):
                raise InputError(
                    f"{self.part}: answer {number} is not to puzzle {number} of this call; remove the file, or solve "
                    "the same puzzles as before"
                )
        if len(self.records) > len(puzzles):
            raise InputError(f"{self.part} has {len(self.records)} answers, and there are {len(puzzles)} puzzles")

    def add(self, records: Sequence[Record]) -> None:
        """Append answers; they are on the disk when it returns."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with self.part.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> list[Record]:
        """Write the file, as its name says: JSON lines, or CSV without traces and trajectories. Remove the part.

        Returns all records.
        """
        records = self._read()
        with written_beside(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            if self.path.suffix.lower() == ".jsonl":
                file.writelines(json.dumps(record) + "\n" for record in records)
            else:
                columns = [name for name in records[0] if name not in _NOT_IN_CSV]
                writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(records)
        self.part.unlink()
        return records

    def _read(self) -> list[Record]:
        """The whole records of the part; a record that was cut off is removed from it."""
        data = self.part.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.part, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise InputError(f"{self.part} does not hold answers of hrm solve; remove it") from None


def text_of(task: "PuzzleTask", puzzle: "PuzzleInput") -> str:
    """A puzzle as records show it: in one line, or as it was written if it cannot be read."""
    return puzzle.text.text if puzzle.tokens is None else task.format(puzzle.tokens)

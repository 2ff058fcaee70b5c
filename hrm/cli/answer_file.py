"""The file of ``hrm solve --out``: written part by part, so that a call that was killed can be resumed."""

import csv
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from hrm.errors import InputError
from hrm.files import written_beside
from hrm.files.locking import lock

if TYPE_CHECKING:
    from hrm.cli.puzzle_input import PuzzleInput
    from hrm.data.task import PuzzleTask

_NOT_IN_CSV = ("trace", "trajectories", "chosen")
_SECONDS, _MOST = 10.0, 4096
"""What a part takes about, and the most puzzles in it: no more is lost if the call is stopped."""

Record = dict[str, Any]
"""A puzzle and its answer, as ``hrm solve --json`` prints them."""


class AnswerFile:
    """Answers on their way into a file: JSON lines in ``<path>.part``, until all puzzles are solved.

    The first line of the part has the settings of the call, each other line a record.

    Attributes:
        records: the answers of an earlier call that was resumed.
    """

    def __init__(self, path: Path, resume: bool, settings: Mapping[str, Any]) -> None:
        """
        Args:
            path: of the finished file; its ending says CSV or JSON lines.
            resume: continue the part of an earlier call, if there is one.
            settings: JSON values that change answers; those of the earlier call must be the same.

        Raises:
            InputError: an earlier call left a part, and ``resume`` is not set, or its settings differ; or a call that
                runs now writes the part.
        """
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        self._settings = dict(settings)
        self._file: BinaryIO | None = None
        self.records: list[Record] = []
        if not self.part.exists():
            return
        if not resume:
            raise InputError(
                f"{self.part} has answers of a call that did not end; add --resume to continue it, or remove the file"
            )
        self._open()
        lines = self._read()
        if not lines:  # the call was stopped before its first line was whole
            return
        earlier, *self.records = lines
        if "settings" not in earlier:
            self._refuse("does not hold answers of this hrm solve; remove it")
        for name, value in self._settings.items():
            was = earlier["settings"].get(name)
            if was != value:
                self._refuse(
                    f"is of a call with {name} {was}, and this one has {value}; call with {name} {was}, or remove it"
                )

    def parts(self, puzzles: Sequence["PuzzleInput"], least: int) -> Iterator[Sequence["PuzzleInput"]]:
        """The puzzles without an answer, in parts that are solved and added in turn, ``least`` or more at once."""
        start, size = len(self.records), least
        while start < len(puzzles):
            began = time.monotonic()
            yield puzzles[start : start + size]
            start += size
            faster = _SECONDS / max(time.monotonic() - began, 1e-3)
            size = max(least, min(_MOST, int(size * min(faster, 4))))

    def check(self, task: "PuzzleTask", puzzles: Sequence["PuzzleInput"]) -> None:
        """
        Raises:
            InputError: the answers of the earlier call are not those to the first ``puzzles``.
        """
        for number, (record, puzzle) in enumerate(zip(self.records, puzzles), 1):
            if record.get("puzzle") != text_of(task, puzzle):
                self._refuse(
                    f"has another puzzle {number} than this call; solve the same puzzles as before, or remove it"
                )
        if len(self.records) > len(puzzles):
            self._refuse(f"has {len(self.records)} answers, and there are {len(puzzles)} puzzles")

    def add(self, records: Sequence[Record]) -> None:
        """Append answers; they are on the disk when it returns."""
        file = self._file or self._open()
        lines = list(records) if self.part.stat().st_size else [{"settings": self._settings}, *records]
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())

    def finish(self) -> list[Record]:
        """Write the file, as its name says: JSON lines, or CSV without traces and trajectories. Remove the part.

        Returns all records.
        """
        _, *records = self._read()
        with written_beside(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            if self.path.suffix.lower() == ".jsonl":
                file.writelines(json.dumps(record) + "\n" for record in records)
            else:
                columns = [name for name in records[0] if name not in _NOT_IN_CSV]
                writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(records)
        self.part.unlink()
        self.close()
        return records

    def close(self) -> None:
        """Leave the part to other calls."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> BinaryIO:
        """Open the part to append to it, and lock it until the call ends."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part.open("ab")
        if lock(self._file.fileno()) is False:
            self._refuse("is being written by another call; wait for its end, or choose another --out")
        return self._file

    def _read(self) -> list[Record]:
        """The whole lines of the part; one that was cut off is removed from it."""
        data = self.part.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.part, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            lines = [None]
        if not all(isinstance(line, dict) for line in lines):
            self._refuse("does not hold answers of this hrm solve; remove it")
        return lines

    def _refuse(self, reason: str) -> NoReturn:
        self.close()
        raise InputError(f"{self.part} {reason}")


@contextmanager
def resumable(file: AnswerFile | None) -> Iterator[None]:
    """Close the file if the work fails, and tell someone who stops it with Ctrl-C where the answers are."""
    try:
        yield
    except BaseException as error:
        if file is not None:
            file.close()
            if isinstance(error, KeyboardInterrupt) and file.part.exists():
                print(f"hrm: stopped; the answers so far are in {file.part}; --resume continues", file=sys.stderr)
        raise


def text_of(task: "PuzzleTask", puzzle: "PuzzleInput") -> str:
    """A puzzle as records show it: in one line, or as it was written if it cannot be read."""
    return puzzle.text.text if puzzle.tokens is None else task.format(puzzle.tokens)

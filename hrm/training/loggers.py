"""Where a run's numbers go: CSV files always, TensorBoard or Weights & Biases on request, and the terminal."""

import csv
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from hrm.errors import InputError, printable
from hrm.files import discard, written_beside

Row = Mapping[str, float | int | None]


class CsvLog:
    """A CSV file with a ``step`` column, one row at a time.

    Opening it for a run that goes on after ``last_step`` drops the rows beyond, which that run will write again, and
    all but the first of a step. Rows after ``whole_until`` have a part of what the next one will have, and go when it
    comes.

    Attributes:
        step: of the last row; 0 without one.
    """

    def __init__(self, path: Path, last_step: int = 0, whole_until: int | None = None):
        self.path = path
        self._whole_until = whole_until
        self.columns: list[str] = []
        self.step = 0
        if path.exists():
            rows = self._read()
            kept: dict[int, dict[str, str]] = {}
            for row in rows:
                if (step := int(row["step"])) <= last_step:
                    kept.setdefault(step, row)
            self.step = max(kept, default=0)
            if len(kept) < len(rows):
                self._write(list(kept.values()))

    def append(self, row: Row) -> None:
        """Add a row; None is left blank, and a new column is blank in the rows before."""
        if self._whole_until is not None and self.step > self._whole_until:
            self._write([one for one in self._read() if int(one["step"]) <= self._whole_until])
        self._whole_until = None
        if not self.columns or not row.keys() <= set(self.columns):
            rows = self._read() if self.path.exists() else []
            self.columns += [name for name in row if name not in self.columns]
            self._write(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        self.step = int(row["step"] or 0)

    def _read(self) -> list[dict[str, str]]:
        with self.path.open(newline="", encoding="utf-8-sig") as file:  # some spreadsheets add a byte order mark
            reader = csv.DictReader(file)
            # A line that a crash cut short has no value (None) in its last columns.
            rows = [row for row in reader if None not in row.values() and row.get("step", "").isdigit()]
            self.columns = list(reader.fieldnames or ())
        return rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        with written_beside(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class Loggers:
    """The log of one run: ``metrics.csv`` for training, ``evaluation.csv``, and the logger asked for.

    Args:
        folder: the run's folder.
        kind: ``csv``, ``tensorboard`` or ``wandb``.
        config: the run's configuration, for the loggers that show it.
        last_step: the step from which the run goes on, 0 for a new one.
        summed_from: the step after which the row of ``train`` begins that the run goes on with.

    Raises:
        InputError: the logger's package is not installed.
    """

    def __init__(self, folder: Path, kind: str, config: dict[str, Any], last_step: int, summed_from: int | None = None):
        self._csv = {
            "train": CsvLog(folder / "metrics.csv", last_step, summed_from),
            "eval": CsvLog(folder / "evaluation.csv", last_step),
        }
        self._board: Any = None
        self._wandb: Any = None
        try:
            if kind == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)
            elif kind == "wandb":
                import wandb

                # One folder is one run, also when it is resumed.
                name = folder / "wandb_id.txt"
                if not name.exists():
                    name.write_text(wandb.util.generate_id())
                self._wandb = wandb.init(
                    project="hrm", name=folder.name, id=name.read_text(), resume="allow", dir=str(folder), config=config
                )
        except ImportError:
            raise InputError(
                f"logger={kind} needs a package that is not here; pip install -e '.[train]' in the clone"
            ) from None

    def log(self, kind: str, row: Row) -> None:
        """Write a row (with its ``step``) of ``train`` or ``eval`` numbers, but one of a step only."""
        if row["step"] == self._csv[kind].step:  # the end of a run that is resumed with nothing left to do
            return
        self._csv[kind].append(row)
        named = {f"{kind}/{name}": value for name, value in row.items() if name != "step" and value is not None}
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(named, step=row["step"])

    def close(self) -> None:
        """Finish what the loggers have in hand."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class Reporter:
    """Progress on the terminal: a bar that a person watches, or a line every few seconds where the output is a file.

    Args:
        quiet: say nothing (all processes but the first).

    Attributes:
        lost: what has happened to the output, if something has: its reader has gone, its terminal was closed, its disk
            is full. Nothing more is written then.
    """

    def __init__(self, quiet: bool):
        self.console = _Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.lost: OSError | None = None
        self._total, self._first, self._started, self._last_line = 0, 0, time.monotonic(), 0.0
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what room is left
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            expand=True,
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
            auto_refresh=False,  # no thread beside those that train
        )

    def begin(self, total: int, done: int) -> None:
        """Show progress from now on: of ``total`` steps of the run ``done`` are made already."""
        self._total, self._first, self._started = total, done, time.monotonic()
        self._task = self._progress.add_task("", total=total, completed=done)
        with self._writing():
            self._progress.start()

    def show(self, row: Row, last: bool = False) -> None:
        """Show a row of the training log; between lines in a file some are left out, ``last`` is not."""
        step = int(row["step"] or 0)
        left = (time.monotonic() - self._started) / max(1, step - self._first) * (self._total - step)
        text = " ".join(
            (
                f"loss {_number(row['loss'], '.4f')}",
                f"exact {_number(row['exact_accuracy'], '.1%')}",
                f"steps {_number(row['steps'], '.2f')}",
                f"{_number(row['puzzles_per_second'], '.0f')} puzzles/s",
                f"ETA {timedelta(seconds=round(left))}",
            )
        )
        with self._writing():
            self._progress.update(self._task, completed=step, description=text, refresh=True)
        if not self.console.is_terminal and (last or time.monotonic() - self._last_line >= 5):
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self._total}  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._writing():
            self.console.print(printable(text), markup=False)

    def close(self) -> None:
        """Take the bar away."""
        with self._writing():
            self._progress.stop()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = error
            self.console.quiet = True
            discard(sys.stdout)
            with suppress(OSError):
                os.write(2, f"standard output takes no more ({error.strerror}); the run stops and is saved\n".encode())


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise  # noqa: PLE0704  (the error that is being handled; rich would end the program)


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)

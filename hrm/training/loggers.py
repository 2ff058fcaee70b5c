"""Where a run's numbers go: CSV files always, TensorBoard or Weights & Biases on request, and the terminal."""

import csv
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from hrm.errors import InputError
from hrm.files import written_beside

Row = Mapping[str, float | int | None]


class CsvLog:
    """A CSV file with a ``step`` column, one row at a time.

    Opening it for a run that goes on after ``last_step`` drops the rows beyond, which that run will write again, and
    all but the first of a step.

    Attributes:
        step: of the last row; 0 without one.
    """

    def __init__(self, path: Path, last_step: int = 0):
        self.path = path
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

    Raises:
        InputError: the logger's package is not installed.
    """

    def __init__(self, folder: Path, kind: str, config: dict[str, Any], last_step: int):
        files = {"train": "metrics.csv", "eval": "evaluation.csv"}
        self._csv = {kind: CsvLog(folder / name, last_step) for kind, name in files.items()}
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
        total: steps of the run.
        done: steps made already.
        quiet: say nothing (all processes but the first).
    """

    def __init__(self, total: int, done: int, quiet: bool):
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._total, self._first, self._started, self._last_line = total, done, time.monotonic(), 0.0
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
        self._task = self._progress.add_task("", total=total, completed=done)
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
        self._progress.update(self._task, completed=step, description=text, refresh=True)
        if not self.console.is_terminal and (last or time.monotonic() - self._last_line >= 5):
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self._total}  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""The logs of a run: CSV files always, TensorBoard or Weights & Biases on request."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrm.errors import InputError
from hrm.files import written_beside

Row = Mapping[str, float | int | None]


class CsvLog:
    """A CSV file with a ``step`` column, one row at a time.

    A run that is resumed after ``last_step`` will write later rows again, so opening the file drops them, and all but
    the first row of a step. A row after ``whole_until`` covers only a part of the steps that the next row covers; the
    next :meth:`append` replaces it.

    Attributes:
        step: the step of the last row; 0 without a row.
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
        """Add a row. None is written as a blank; a new column is blank in the rows before."""
        if self._whole_until is not None and self.step > self._whole_until:
            self._write([old for old in self._read() if int(old["step"]) <= self._whole_until])
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
            # A line that a crash cut short has None in its last columns.
            rows = [row for row in reader if None not in row.values() and row.get("step", "").isdigit()]
            self.columns = list(reader.fieldnames or ())
        return rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        with written_beside(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class Loggers:
    """All logs of a run: ``metrics.csv`` for training, ``evaluation.csv``, and the configured logger.

    Args:
        folder: the run's folder.
        kind: ``csv``, ``tensorboard`` or ``wandb``.
        config: the run's configuration, for loggers that show it.
        last_step: the step that the run resumes after; 0 for a new run.
        summed_from: the step after which the current row of ``train`` starts.

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

                # A resumed run stays the same run, because its folder keeps the id.
                name = folder / "wandb_id.txt"
                if not name.exists():
                    name.write_text(wandb.util.generate_id())
                self._wandb = wandb.init(
                    project="hrm", name=folder.name, id=name.read_text(), resume="allow", dir=str(folder), config=config
                )
        except ImportError:
            raise InputError(
                f"logger={kind} needs a package that is not installed; run pip install -e '.[train]' in the clone"
            ) from None

    def log(self, kind: str, row: Row) -> None:
        """Write a row of ``train`` or ``eval`` numbers, with its ``step``. A second row of a step is dropped."""
        if row["step"] == self._csv[kind].step:  # a run resumed with nothing left to do ends at the same step
            return
        self._csv[kind].append(row)
        named = {f"{kind}/{name}": value for name, value in row.items() if name != "step" and value is not None}
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(named, step=row["step"])

    def close(self) -> None:
        """Write out and close the loggers."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

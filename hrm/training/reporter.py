"""The progress of a run on the terminal."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from hrm.errors import printable
from hrm.files import discard
from hrm.training.loggers import Row


class Reporter:
    """A progress bar on a terminal; in a file, a line every few seconds.

    Args:
        quiet: show nothing, as all processes but the first.

    Attributes:
        lost: the error of the output, once it accepts no more: its reader is gone, its terminal is closed, its disk is
            full. From then on nothing is written.
    """

    def __init__(self, quiet: bool):
        self.console = _Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.lost: OSError | None = None
        self._total, self._first, self._started, self._last_line = 0, 0, time.monotonic(), 0.0
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # the width that is left
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            expand=True,
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
            auto_refresh=False,  # a refreshing thread would compete with training
        )

    def begin(self, total: int, done: int) -> None:
        """Start to show progress, with ``done`` of ``total`` steps already made."""
        self._total, self._first, self._started = total, done, time.monotonic()
        self._task = self._progress.add_task("", total=total, completed=done)
        with self._writing():
            self._progress.start()

    def show(self, row: Row, last: bool = False) -> None:
        """Show a row of the training log. A file gets no more than one in five seconds, but always the ``last``."""
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
        """Print a line that stays."""
        with self._writing():
            self.console.print(printable(text), markup=False)

    def close(self) -> None:
        """Remove the progress bar."""
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
        raise  # noqa: PLE0704  (re-raises the error being handled; rich would end the program)


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)

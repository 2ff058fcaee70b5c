"""Progress of long work on stderr: bars on a terminal, else a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Protocol


class Progress(Protocol):
    """Called with a description of the work, how much of it is done, and its total (None: unknown)."""

    def __call__(self, description: str, done: int, total: int | None) -> None: ...


FIRST_LINE, LONGEST_PAUSE = 5.0, 60.0  # seconds; pauses between lines double up to the longest


def silent(description: str, done: int, total: int | None) -> None:
    """The :class:`Progress` that shows nothing."""


def begun(progress: Progress, description: str, total: int | None) -> Callable[[int], None]:
    """Report the start of work to ``progress``. Returns a function that reports how much of it is done."""
    report = partial(progress, description, total=total)
    report(0)
    return report


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Progress]:
    """Show the progress of the work inside the ``with`` block: a bar with the remaining time for each description.

    If stderr is not a terminal, lines are printed instead; work of less than five seconds prints none.

    Args:
        shown: False shows nothing.
    """
    if not shown:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        lines = Lines()
        timer = threading.Thread(target=lines.run, daemon=True)  # a single step may take longer than a pause
        timer.start()
        try:
            yield lines
        finally:
            lines.ended.set()
            timer.join()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    times = (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *times)
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(description: str, done: int, total: int | None) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done, total=total)

        yield show


class Lines:
    """A :class:`Progress` that prints lines, from :meth:`run`, until ``ended`` is set."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._state: tuple[str, int, int | None] | None = None
        self._began = 0.0
        self._written = False  # whether this description has had a line

    def __call__(self, description: str, done: int, total: int | None) -> None:
        with self._lock:
            if self._state is None or self._state[0] != description:
                self._began, self._written = time.monotonic(), False
            self._state = description, done, total
            if self._written and done == total:
                self._write(f"{description}: {done:,}/{done:,} in {self._elapsed()}")
                self._state = None

    def run(self) -> None:
        """Write a line after five seconds, and then after longer and longer pauses."""
        pause = FIRST_LINE
        while not self.ended.wait(pause):
            self.write()
            pause = min(2 * pause, LONGEST_PAUSE)

    def write(self) -> None:
        """Write a line about the current work, if it has taken five seconds so far."""
        with self._lock:
            if self._state is None or time.monotonic() - self._began < FIRST_LINE:
                return
            description, done, total = self._state
            text = f"{description}: {done:,}"
            if total is not None:
                text += f"/{total:,}"
            text += f" after {self._elapsed()}"
            if total is not None and 0 < done <= total:
                remaining = (time.monotonic() - self._began) * (total - done) / done
                text += f", ETA {timedelta(seconds=round(remaining))}"
            self._write(text)
            self._written = True

    def _elapsed(self) -> timedelta:
        return timedelta(seconds=round(time.monotonic() - self._began))

    def _write(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

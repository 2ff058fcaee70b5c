"""How far long work is: a bar where a person watches, elsewhere a line now and then. All of it goes to stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Protocol


class Progress(Protocol):
    """Told what is being done, how much of it is done, and of how much (None: unknown)."""

    def __call__(self, description: str, done: int, total: int | None) -> None: ...


FIRST_LINE, LONGEST_PAUSE = 5.0, 60.0  # seconds; each pause between two lines is twice the last one


def silent(description: str, done: int, total: int | None) -> None:
    """The :class:`Progress` that shows nothing."""


def begun(progress: Progress, description: str, total: int | None) -> Callable[[int], None]:
    """Tell ``progress`` that this work begins. What comes back is called with how much of it is done."""
    tell = partial(progress, description, total=total)
    tell(0)
    return tell


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Progress]:
    """Show the work within: each description has a bar of its own, with the time that is left.

    Where stderr is no terminal there are lines instead, none of work that takes less than five seconds.

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
        timer = threading.Thread(target=lines.run, daemon=True)  # one step may take longer than a pause
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
        known: dict[str, TaskID] = {}

        def show(description: str, done: int, total: int | None) -> None:
            if description not in known:
                known[description] = bars.add_task(description, total=total)
            bars.update(known[description], completed=done, total=total)

        yield show


class Lines:
    """A :class:`Progress` in lines, written by :meth:`run` until ``ended`` is set."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._state: tuple[str, int, int | None] | None = None
        self._began = 0.0
        self._written = False  # a line of this description

    def __call__(self, description: str, done: int, total: int | None) -> None:
        with self._lock:
            if self._state is None or self._state[0] != description:
                self._began, self._written = time.monotonic(), False
            self._state = description, done, total
            if self._written and done == total:
                self._write(f"{description}: {done:,}/{done:,} in {self._elapsed()}")
                self._state = None

    def run(self) -> None:
        """Write where the work is after five seconds, and then after longer and longer pauses."""
        pause = FIRST_LINE
        while not self.ended.wait(pause):
            self.write()
            pause = min(2 * pause, LONGEST_PAUSE)

    def write(self) -> None:
        """Write where the work is, if any has been under way for five seconds."""
        with self._lock:
            if self._state is None or time.monotonic() - self._began < FIRST_LINE:
                return
            description, done, total = self._state
            text = f"{description}: {done:,}"
            if total is not None:
                text += f"/{total:,}"
            text += f" after {self._elapsed()}"
            if total is not None and 0 < done <= total:
                left = (time.monotonic() - self._began) * (total - done) / done
                text += f", ETA {timedelta(seconds=round(left))}"
            self._write(text)
            self._written = True

    def _elapsed(self) -> timedelta:
        return timedelta(seconds=round(time.monotonic() - self._began))

    def _write(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

"""The times of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class RunClock:
    """Measures how long a run trains, in this start and in earlier ones.

    Attributes:
        evaluation_seconds: how long the last evaluation took; 0 before the first.
    """

    def __init__(self) -> None:
        self._opened = self._started = self._row_started = time.monotonic()
        self._earlier_seconds = 0.0
        self.evaluation_seconds = 0.0

    def start(self, earlier_seconds: float, row_seconds: float) -> None:
        """Start training.

        Args:
            earlier_seconds: training time of earlier starts.
            row_seconds: the part of it that belongs to the current row of the log.
        """
        self._earlier_seconds, self._started = earlier_seconds, time.monotonic()
        self._row_started = self._started - row_seconds

    @property
    def start_seconds(self) -> float:
        """Training time of this start."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Training time of all starts."""
        return self._earlier_seconds + self.start_seconds

    @property
    def row_seconds(self) -> float:
        """Training time of the current row of the log, without pauses."""
        return time.monotonic() - self._row_started

    def start_row(self) -> float:
        """Start the next row of the log. Returns the time of the last one."""
        seconds = self.row_seconds
        self._row_started += seconds
        return seconds

    @contextmanager
    def pause_row(self) -> Iterator[None]:
        """Leave the time within this context out of the current row, whose speed is that of training."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._row_started += time.monotonic() - started

    @contextmanager
    def time_evaluation(self) -> Iterator[None]:
        """Pause the row, and set :attr:`evaluation_seconds`."""
        started = time.monotonic()
        with self.pause_row():
            yield
        self.evaluation_seconds = time.monotonic() - started

    def is_over(self, minutes: float | None) -> bool:
        """Whether ``minutes`` since this start leave time only for one more evaluation, as long as the last one."""
        return minutes is not None and time.monotonic() - self._opened + self.evaluation_seconds > 60 * minutes

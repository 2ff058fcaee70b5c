"""Signals that ask a run to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP; a second SIGINT interrupts at once.

    Args:
        announce: tell the user that the run will stop (one process does).

    Attributes:
        received: whether a signal came.
    """

    def __init__(self, announce: bool):
        self._announce = announce
        self.received = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals within this context. Does nothing outside the main thread, which gets all signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # does not exist on Windows
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup ignores it
            numbers.append(hangup)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._announce:
            with suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping: this step is finished and saved; Ctrl-C again stops without saving\n")

"""Futures whose callbacks run one after another in each thread, however deeply they nest."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from hrm.inference.engine.results import Result

_LOGGER = logging.getLogger(__name__)
Callback = Callable[[Future[Result]], object]


class JobFuture(Future[Result]):
    """A future whose callbacks are queued while another callback runs in the same thread."""

    def add_done_callback(self, fn: Callback) -> None:
        super().add_done_callback(partial(_call_back, fn))


def postpone_callbacks() -> None:
    """From here on callbacks in this thread wait for :func:`run_postponed_callbacks`."""
    _pending.calls = deque()


def run_postponed_callbacks() -> None:
    """Run them; log what they raise."""
    _call_all()


class _Pending(threading.local):
    """Callbacks that this thread has yet to run; None while it runs none."""

    calls: deque[tuple[Callback, Future[Result]]] | None = None


_pending = _Pending()


def _call_back(callback: Callback, future: Future[Result]) -> None:
    """``callback(future)``, after the pending ones."""
    if _pending.calls is not None:
        _pending.calls.append((callback, future))
        return
    _pending.calls = deque([(callback, future)])
    if (interrupt := _call_all()) is not None:
        raise interrupt


def _call_all() -> BaseException | None:
    """Run all pending callbacks, also new ones. Returns the first KeyboardInterrupt, SystemExit or the like."""
    calls, interrupt = _pending.calls, None
    try:
        while calls:
            callback, future = calls.popleft()
            try:
                callback(future)
            except BaseException as error:  # the callbacks of other futures must still run
                _LOGGER.exception("exception calling callback for %r", future)
                if not isinstance(error, Exception):
                    interrupt = interrupt or error
    finally:
        _pending.calls = None
    return interrupt

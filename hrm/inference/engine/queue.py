"""Jobs that wait for a slot, and callers that block while there are too many."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Protocol

from hrm.inference.engine.jobs import Job


class EngineError(RuntimeError):
    """The engine accepts no more puzzles: it is closed, its worker has failed (``__cause__`` is the error), or this
    process was forked from the one it runs in."""


class FreeSlots(Protocol):
    """What the queue fills: a batch with ``size`` slots."""

    size: int

    @property
    def free(self) -> list[int]: ...

    def start(self, row: int, job: Job) -> None: ...


class BlockedCaller:
    """A caller whose jobs do not fit in the queue yet.

    Attributes:
        jobs: they enter the queue together.
        queued: done when they are in the queue.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.queued: Future[None] = Future()


class JobQueue:
    """The queue between callers and the worker, first in, first out.

    Args:
        size: jobs that may wait.
        worker: the thread that takes jobs. It never blocks in :meth:`put`, since only it can free a place.

    Attributes:
        waiting: jobs without a slot.
        blocked: callers in order of arrival.
        closing: no more jobs are accepted.
        cancelling: jobs in the queue and in slots are cancelled.
        forked: this is a forked child, where the worker does not run.
    """

    def __init__(self, size: int, worker: threading.Thread) -> None:
        self.size, self._worker = size, worker
        self.lock = threading.RLock()  # protects the attributes; callbacks of `queued` may enter again
        self.waiting: deque[Job] = deque()
        self.blocked: deque[BlockedCaller] = deque()
        self.closing = self.cancelling = self.forked = False
        self._ended = self._idle = False
        self._failure: BaseException | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()  # unlike a lock it is safe in a finalizer

    # Callers

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue ``jobs`` together; block until there are places for all of them.

        Raises:
            EngineError: no more jobs are accepted.
        """
        if jobs and (caller := self.offer(jobs)):
            try:
                caller.queued.result()
            except BaseException:
                caller.queued.cancel()
                raise

    async def aput(self, job: Job) -> None:
        """:meth:`put` for one job, without blocking the event loop."""
        if caller := self.offer([job]):
            await asyncio.wrap_future(caller.queued)

    def offer(self, jobs: Sequence[Job]) -> BlockedCaller | None:
        """Queue ``jobs`` and return None, or register a blocked caller if the queue is full or others wait already.

        Raises:
            EngineError: no more jobs are accepted.
        """
        with self.lock:
            if self.closing or self._ended:
                raise self.refusal()
            if threading.current_thread() is self._worker or not self.blocked and self._has_places_for(jobs):
                self.waiting.extend(jobs)
                if self._idle:
                    self._idle = False
                    self._wake.put(None)
                return None
            caller = BlockedCaller(jobs)
            self.blocked.append(caller)
            return caller

    def refusal(self) -> EngineError:
        """The reason why no more jobs are accepted."""
        if self.forked:
            return EngineError(
                f"the engine runs in the process that this one ({os.getpid()}) was forked from; make an engine here"
            )
        if self._failure is None:
            return EngineError("the engine is closed")
        error = EngineError("the engine's worker has failed; its error is the cause of this one")
        error.__cause__ = self._failure
        return error

    # The worker

    def fill(self, slots: FreeSlots) -> bool:
        """Start waiting jobs in free slots; block while all slots are free. Returns False if no job will come.

        A job with several trajectories takes a slot for each, and waits while there are none.
        """
        while True:
            with self.lock:
                if self.closing and self.cancelling:
                    return False
                free = slots.free
                while free and self.waiting:
                    job = self.waiting[0]
                    if job.is_cancelled():
                        job.settle(CancelledError())
                    if job.needs_slot:
                        slots.start(free.pop(), job)
                    if not job.needs_slot:
                        self.waiting.popleft()
                        self._admit_blocked()
                if len(free) < slots.size:
                    return True
                if self.closing:
                    return False
                self._idle = True
            self._wake.get()

    def end(self, failure: BaseException | None) -> list[Job]:
        """Refuse all jobs from now on. Returns the jobs that still wait."""
        with self.lock:
            self._failure, self._ended = failure, True
            left = list(self.waiting)
            self.waiting.clear()
            self._refuse_blocked()
        return left

    # Closing

    def close(self, cancel: bool) -> None:
        """Accept no more jobs; ``cancel`` the jobs that wait or run."""
        with self.lock:
            self.closing = True
            self.cancelling |= cancel
            self._refuse_blocked()
        self._wake.put(None)

    def close_without_lock(self) -> None:
        """:meth:`close` for a finalizer, which may run in any thread, whatever locks that holds."""
        self.closing = True
        self._wake.put(None)

    def abandon(self) -> None:
        """In a forked child: nobody holds the lock, though it may be locked, and nobody takes jobs."""
        self.lock = threading.RLock()
        self.blocked.clear()
        self.forked = self._ended = self.closing = self.cancelling = True

    def _has_places_for(self, jobs: Sequence[Job]) -> bool:
        return len(self.waiting) + len(jobs) <= self.size

    def _admit_blocked(self) -> None:
        """Queue the jobs of blocked callers in order of arrival: few jobs do not overtake many."""
        while self.blocked and self._has_places_for(self.blocked[0].jobs):
            caller = self.blocked.popleft()
            if caller.queued.set_running_or_notify_cancel():
                self.waiting.extend(caller.jobs)
                caller.queued.set_result(None)

    def _refuse_blocked(self) -> None:
        while self.blocked:
            caller = self.blocked.popleft()
            if caller.queued.set_running_or_notify_cancel():
                caller.queued.set_exception(self.refusal())

"""The way of results from the worker to callers."""

from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

from hrm.errors import InputError
from hrm.inference.engine.callbacks import postpone_callbacks, run_postponed_callbacks
from hrm.inference.engine.jobs import Job
from hrm.inference.engine.queue import JobQueue
from hrm.inference.engine.results import Result


class StreamJob(Job):
    """A job of ``solve``: one stream for all of them costs less than a future for each."""

    def __init__(self, index: int, stream: "ResultStream", wants_trace: bool) -> None:
        super().__init__(index, wants_trace)
        self.stream = stream
        self.outcome: Result | BaseException | None = None

    def is_cancelled(self) -> bool:
        return self.stream.closed

    def _set(self, outcome: Result | BaseException) -> None:
        self.outcome = Result.refused(self.index, outcome) if isinstance(outcome, InputError) else outcome


class ResultStream:
    """The results of one ``solve``: the worker puts the results of a segment at once, the caller takes them one by one.

    Args:
        ordered: take results in the order of their jobs, else as they come.
        queue: the jobs'.

    Attributes:
        expected: number of results that the caller has yet to take.
        closed: set by the caller: it takes no more.
    """

    def __init__(self, ordered: bool, queue: JobQueue) -> None:
        self.expected, self.closed = 0, False
        self._ordered, self._queue = ordered, queue
        self._settled: SimpleQueue[list[StreamJob]] = SimpleQueue()
        self._next: deque[StreamJob] = deque()  # ordered: all expected jobs; else the settled ones

    def put(self, jobs: list[StreamJob]) -> None:
        """Hand over settled jobs."""
        self._settled.put(jobs)

    def expect(self, jobs: list[StreamJob], settled: list[StreamJob]) -> None:
        """Expect the results of ``jobs``; those of the ``settled`` ones are there already, and not put."""
        self.expected += len(jobs)
        self._next.extend(jobs if self._ordered else settled)

    def is_ready(self) -> bool:
        """Whether :meth:`take` returns at once."""
        while not self._settled.empty():
            self._receive()
        return self._has_next()

    def take(self) -> Result:
        """Wait for the next result.

        Raises:
            EngineError: the worker has failed.
            concurrent.futures.CancelledError: the engine was closed with ``cancel``.
        """
        while not self._has_next():
            self._receive()
        self.expected -= 1
        outcome = self._next.popleft().outcome
        if isinstance(outcome, Result):
            return outcome
        assert outcome is not None
        raise outcome

    def _has_next(self) -> bool:
        return bool(self._next) and self._next[0].outcome is not None

    def _receive(self) -> None:
        if self._queue.forked:
            raise self._queue.refusal()
        jobs = self._settled.get()
        if not self._ordered:
            self._next.extend(jobs)


def deliver(outcomes: Sequence[tuple[Job, Result | BaseException]]) -> None:
    """Settle jobs and wake the callers that wait for them; an exception in a callback does not end the worker."""
    postpone_callbacks()
    streamed: dict[ResultStream, list[StreamJob]] = {}
    for job, outcome in outcomes:
        job.settle(outcome)
        if isinstance(job, StreamJob):
            streamed.setdefault(job.stream, []).append(job)
    for stream, jobs in streamed.items():
        stream.put(jobs)
    run_postponed_callbacks()

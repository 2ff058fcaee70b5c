"""Iterators over the results of many puzzles, for callers that wait and for event loops."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hrm.inference.engine.delivery import ResultStream, StreamJob
from hrm.inference.engine.jobs import FutureJob
from hrm.inference.engine.puzzles import PuzzleReader, require_several
from hrm.inference.engine.queue import EngineError, JobQueue
from hrm.inference.engine.results import Result
from hrm.openmp import release_threads


@dataclass(frozen=True)
class Streaming:
    """:meth:`hrm.Engine.solve` and :meth:`hrm.Engine.asolve`.

    Attributes:
        reader: checks the puzzles.
        queue: where the jobs go.
        slots: of the batch.
    """

    reader: PuzzleReader
    queue: JobQueue
    slots: int

    @property
    def _ahead(self) -> int:
        """Puzzles that are taken from the source before their results are taken."""
        return 2 * (self.slots + self.queue.size)

    def solve(self, puzzles: Iterable[Any], ordered: bool, trace: bool) -> Iterator[Result]:
        """The results of ``puzzles``, with a bounded number of jobs under way."""
        require_several(puzzles)
        release_threads()
        stream = ResultStream(ordered, self.queue)
        source, index = iter(puzzles), 0
        size = later = 1
        if isinstance(puzzles, Sized):  # they exist already: start them together, and queue them in bulk
            size, later = min(self.slots, self.queue.size), max(1, min(self.slots, self.queue.size // 4))
        failure: Exception | None = None
        try:
            while failure is None:
                chunk: list[Any] = []
                try:
                    for puzzle in islice(source, size):
                        chunk.append(puzzle)
                except Exception as error:
                    failure = error
                if not chunk:
                    break
                jobs = [StreamJob(number, stream, trace) for number in range(index, index + len(chunk))]
                index += len(chunk)
                self._read(jobs, chunk)
                settled = [job for job in jobs if job.is_settled]
                try:
                    self.queue.put([job for job in jobs if not job.is_settled])
                except EngineError as error:
                    failure = error
                    break
                stream.expect(jobs, settled)
                while stream.expected and (stream.expected >= self._ahead or stream.is_ready()):
                    yield stream.take()
                size = later
            while stream.expected:
                yield stream.take()
            if failure is not None:
                raise failure
        finally:
            stream.closed = True
            failure = None  # its traceback holds this frame, and with it the engine

    def _read(self, jobs: list[StreamJob], puzzles: list[Any]) -> None:
        if read := self.reader.read_arrays(puzzles):
            for job, puzzle in zip(jobs, read):
                job.take(self.reader, puzzle)
        else:
            for job, puzzle in zip(jobs, puzzles):
                job.read(self.reader, puzzle)

    async def asolve(self, puzzles: Iterable[Any] | AsyncIterable[Any], trace: bool) -> AsyncGenerator[Result, None]:
        """:meth:`solve` in order, each result as soon as it is there, even while ``puzzles`` waits."""
        require_several(puzzles)
        source, index = _each(puzzles), 0
        pending: deque[asyncio.Task[Result]] = deque()

        async def submit_next() -> "asyncio.Task[Result] | None":
            try:
                puzzle = await anext(source)
            except StopAsyncIteration:
                return None
            job = FutureJob(index, trace)
            job.read(self.reader, puzzle)
            if not job.is_settled:
                await self.queue.aput(job)
            return asyncio.ensure_future(job.result())

        submitting: asyncio.Task[asyncio.Task[Result] | None] | None = None
        has_more = True
        failure: Exception | None = None
        try:
            while has_more or pending:
                if has_more and not submitting and len(pending) < self._ahead:
                    submitting = asyncio.ensure_future(submit_next())
                first = [pending[0]] if pending else []
                await asyncio.wait([*first, *([submitting] if submitting else [])], return_when=asyncio.FIRST_COMPLETED)
                if submitting and submitting.done():
                    try:
                        submitted = submitting.result()
                    except Exception as error:
                        submitted, failure = None, error
                    submitting = None
                    if submitted:
                        pending.append(submitted)
                        index += 1
                    else:
                        has_more = False
                while pending and pending[0].done():
                    yield await pending.popleft()
            if failure is not None:
                raise failure
        finally:
            failure = None  # as in solve
            under_way = [*pending, *([submitting] if submitting else [])]
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


async def _each(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item

"""The public interface: results from an iterator, a future, or an event loop."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from itertools import count
from types import TracebackType
from typing import Any

from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.engine.batch import BatchSettings
from hrm.inference.engine.jobs import FutureJob
from hrm.inference.engine.puzzles import PuzzleReader
from hrm.inference.engine.results import Result
from hrm.inference.engine.scheduler import Scheduler
from hrm.inference.engine.segment import require_memory_for
from hrm.inference.engine.streaming import Streaming
from hrm.inference.engine.trajectories import Trajectories
from hrm.inference.engine.verification import Verifier
from hrm.inference.halting import Halting, needs, parse_halting
from hrm.inference.segments import require_positive
from hrm.model import HRM

_MOST_STEPS = 2**31 - 1  # a carry counts in 32 bits


class Engine:
    """Runs a model on many puzzles side by side, each for as many segments as it needs, in a thread.

    Rows do not influence each other: on the ``cpu`` backend a puzzle's answer and Q values are the same to the bit in
    any slot, beside any other puzzles, with any number of slots and threads. On the ``reference`` backend they are
    close: PyTorch's matrix products on a CPU may round a row differently depending on its position and on the number of
    rows.

    ::

        with hrm.Engine(model, slots=64) as engine:
            for result in engine.solve(puzzles):
                print(result.tokens, result.steps, result.confidence)

    On a CPU the thread that makes the engine, or calls :meth:`solve`, ends its idle OpenMP threads
    (:func:`hrm.openmp.release_threads`), so that the worker has the cores to itself.

    On a GPU a segment is one CUDA graph, which includes the refill of slots and the copy of the answers.
    ``HRM_KERNELS_GRAPHS=0`` in the environment launches kernel by kernel.

    Any thread may call :meth:`submit`. Until the ``with`` block ends (or :meth:`close` returns) the model is in
    evaluation mode and must not be used elsewhere. An engine that is garbage-collected finishes its puzzles and ends;
    an engine that is open when the program ends is cancelled. In a forked child it has no worker and refuses puzzles.

    Args:
        model: an :class:`hrm.HRM` or :class:`hrm.TRM`, on any device.
        slots: number of trajectories side by side; without ``trajectories`` each puzzle has one.
        max_steps: most segments for a puzzle, below 2**31; it may exceed the model's ``halt_max_steps``.
        min_steps: least segments for a puzzle.
        halt: when a puzzle halts: ``"q"`` as soon as q_halt > q_continue (q_halt > 0 for a TRM, whose q_continue is 0),
            ``"fixed"`` after ``max_steps`` as published, ``"stable:K"`` when the answer has not changed for K segments,
            ``"margin:X"`` when q_halt - q_continue > X, ``"residual:EPS"`` when two segments have changed the states by
            less than EPS, ``"check"`` when the task accepts the answer, several of them such as ``"q|residual:0.01"``,
            ``"calibrated"`` by the threshold that :func:`hrm.calibrate` stored beside the model, ``"auto"`` by that
            threshold or else ``"q"``, or a function of a :class:`hrm.inference.halting.Moment`.
        backend: backend of this engine's ops, as for :func:`hrm_kernels.use_backend`; None is the choice of the thread
            that makes the engine. Engines with different backends may run side by side.
        queue_size: puzzles that may wait for a slot; None is four per slot. :meth:`submit` blocks while the queue is
            full.
        task: checks the answers: ``Result.verified`` and ``Result.reason``. A puzzle that is its own answer is then
            returned at once, and one whose answer is wrong because it has no solution has a result with ``error`` set.
        abstain: return no answer (empty ``tokens``) rather than one that the task does not verify.
        trajectories: attempts at each puzzle; each takes a slot. A number makes them differ by noise before each
            segment, or by the random states of models that start from such; :class:`Trajectories` has all settings. The
            result has the answer that the rules of ``select`` choose, and what each rule would choose.
        damping: let a row whose residual no longer falls go only part of the way with each segment, so that one that
            oscillates comes to rest: ``"DECAY"``, ``"DECAY:PATIENCE"`` (such as ``"0.9:5"``) or an
            :class:`hrm.inference.damping.AdaptiveDamping`; None for none. A row depends on its own residuals only.

    Raises:
        InputError: a number or ``halt`` is invalid, memory cannot hold so many slots, the task does not fit the model,
            or ``abstain`` is set without a task that verifies answers.
        ValueError: ``backend`` is unknown.
        EngineError: the program is ending.
    """

    def __init__(
        self,
        model: HRM,
        slots: int = 64,
        max_steps: int = 16,
        min_steps: int = 1,
        halt: str | Halting = "auto",
        backend: str | None = None,
        queue_size: int | None = None,
        task: PuzzleTask | None = None,
        abstain: bool = False,
        trajectories: int | Trajectories = 1,
        damping: str | AdaptiveDamping | None = None,
    ) -> None:
        require_positive(slots=slots, max_steps=max_steps, min_steps=min_steps, queue_size=queue_size)
        if min_steps > max_steps:
            raise InputError(f"min_steps is {min_steps}, more than max_steps {max_steps}")
        if max_steps > _MOST_STEPS:
            raise InputError(f"max_steps is {max_steps}, expected at most {_MOST_STEPS}")
        self.model, self.slots, self.max_steps, self.min_steps = model, int(slots), int(max_steps), int(min_steps)
        require_memory_for(model, self.slots)
        self.halting = parse_halting(halt, model.folder)
        self.queue_size = 4 * self.slots if queue_size is None else int(queue_size)
        self.backend = backend
        if abstain and task is None:
            raise InputError("abstain needs a task that verifies answers; give task=...")
        verifier = None if task is None else Verifier(task, abstain)
        if verifier is not None:
            verifier.require_fit(model.config)
        if needs(self.halting).check and (task is None or not task.verifies):
            raise InputError("halt 'check' needs a task that verifies answers; give task=..., or another rule")
        self.trajectories = Trajectories.of(trajectories).for_model(model.config, task)
        self.damping = AdaptiveDamping.of(damping)
        settings = BatchSettings(
            model, self.slots, self.min_steps, self.max_steps, self.halting, verifier, self.trajectories, self.damping
        )
        self._scheduler = Scheduler(settings, backend, self.queue_size)
        self._reader = PuzzleReader(model.config, None if task is None else task.is_solved)
        self._streaming = Streaming(self._reader, self._scheduler.queue, self.slots)
        self._numbers = count()
        # the scheduler does not hold the engine, so that an engine without references is collected
        weakref.finalize(self, self._scheduler.drop).atexit = False
        self._scheduler.start()

    def submit(self, puzzle: Any, identifier: int = 0, *, trace: bool = False) -> Future[Result]:
        """Queue one puzzle; blocks while the queue is full. Callers that block are served in order of arrival.

        The future can be cancelled until it is done; a puzzle in a slot then frees it after the current segment. The
        future raises :class:`hrm.InputError` for a puzzle that cannot be read or does not fit the model, and
        :class:`EngineError` if the worker has failed. Its callbacks run in the worker, one after another: they should
        be quick, puzzles that they submit are queued at once, and exceptions that they raise are logged.

        Args:
            puzzle: ``[seq_len]`` integers, or a :class:`Puzzle`.
            identifier: row of the puzzle embedding, unless ``puzzle`` is a :class:`Puzzle`.
            trace: keep the answer after each segment.

        Raises:
            EngineError: the engine is closed or has failed, or this process was forked from the one it runs in.
        """
        job = self._job(puzzle, identifier, trace)
        self._scheduler.queue.put([] if job.is_settled else [job])
        return job.future

    async def asubmit(self, puzzle: Any, identifier: int = 0, *, trace: bool = False) -> Result:
        """The result of :meth:`submit`; cancelling the task that awaits it cancels the puzzle."""
        job = self._job(puzzle, identifier, trace)
        if not job.is_settled:
            await self._scheduler.queue.aput(job)
        return await asyncio.wrap_future(job.future)

    def solve(self, puzzles: Iterable[Any], ordered: bool = True, *, trace: bool = False) -> Iterator[Result]:
        """The results of ``puzzles`` (each as in :meth:`submit`), one by one.

        Puzzles are taken from the iterable as results are taken from the iterator, at most twice as many ahead as slots
        and queue hold. A puzzle that cannot be read or does not fit the model has a result with ``error`` set. Leaving
        the iterator early cancels the rest. If ``puzzles`` raises, the results of the puzzles before come first.

        Args:
            puzzles: ``[n, seq_len]`` integers, or any iterable, finite or not.
            ordered: results in the order of the puzzles; else as they come (``index`` is the puzzle's number).
            trace: keep the answers after each segment.

        Raises:
            InputError: ``puzzles`` is a single puzzle.
            EngineError: as for :meth:`submit`.
            concurrent.futures.CancelledError: the engine was closed with ``cancel`` meanwhile.
        """
        yield from self._streaming.solve(puzzles, ordered, trace)

    async def asolve(
        self, puzzles: Iterable[Any] | AsyncIterable[Any], *, trace: bool = False
    ) -> AsyncGenerator[Result, None]:
        """:meth:`solve` for ``async for``, in order; each result comes as soon as it is there.

        ``puzzles`` may be an asynchronous iterable, and may wait for results before it goes on.

        Raises:
            InputError, EngineError, CancelledError: as for :meth:`solve`.
        """
        async with aclosing(self._streaming.asolve(puzzles, trace)) as results:
            async for result in results:
                yield result

    def close(self, cancel: bool = False) -> None:
        """Accept no more puzzles, finish (or ``cancel``) the accepted ones, and end the worker.

        An interrupt (Ctrl-C) meanwhile cancels the rest.
        """
        self._scheduler.close(cancel)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    def _job(self, puzzle: Any, identifier: int, trace: bool) -> FutureJob:
        """A numbered job with its puzzle; it is settled already if the puzzle is refused."""
        job = FutureJob(next(self._numbers), trace)
        job.read(self._reader, puzzle, identifier)
        return job

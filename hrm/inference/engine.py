"""Continuous batching: puzzles think side by side, each for as long as it needs.

A puzzle takes a slot of a batch whose shape never changes. After each segment the rows that have halted leave with
their answer, and waiting puzzles take their slots.
"""

import asyncio
import atexit
import logging
import math
import os
import threading
import traceback
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from numbers import Integral, Real
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch

from hrm.errors import InputError
from hrm.inference.halting import Halting, Moment, halts_at_the_end, ignores_answers, parse_halting
from hrm.inference.segments import Modes, modes_of, require_positive, restore_modes
from hrm.model import HRM, Carry
from hrm.openmp import release_threads
from hrm.step_graph import CudaCapture, StepGraph
from hrm_kernels.backends import requested, use_backend
from hrm_kernels.casts import FrozenWeights, refresh
from hrm_kernels.graphs import capturable

_LOGGER = logging.getLogger(__name__)
_MOST_STEPS = 2**31 - 1  # a carry counts in 32 bits
_FAILED = "the engine's worker has failed; what failed it is the cause of this error"


class EngineError(RuntimeError):
    """The engine takes no more puzzles: it is closed, its worker has failed (``__cause__`` says of what), or this is
    a forked child of the process that it runs in."""


class Puzzle(NamedTuple):
    """A puzzle that is more than its tokens.

    Attributes:
        inputs: ``[seq_len]`` integers.
        identifier: row of the puzzle embedding; 0 is the blank one.
        noise: standard deviation of what is added to the initial states of this puzzle; 0 starts as in training.
        seed: of that noise.
    """

    inputs: np.ndarray
    identifier: int = 0
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Frame:
    """The answer after one segment.

    Attributes:
        step: segments so far, from 1.
        tokens: ``[seq_len]`` uint8 (int32 where the vocabulary is larger).
        q_halt, q_continue: logits; q_continue is 0 for models without that head.
    """

    step: int
    tokens: np.ndarray
    q_halt: float
    q_continue: float

    @property
    def confidence(self) -> float:
        """The model's own estimate of the probability that this answer is right."""
        return sigmoid(self.q_halt)

    @property
    def continue_value(self) -> float:
        """What going on is worth, on the same scale."""
        return sigmoid(self.q_continue)


@dataclass(frozen=True)
class Result:
    """What became of a puzzle.

    Attributes:
        index: the puzzle's number, from 0: in the iterable given to ``solve``, or among all that were submitted.
        tokens: ``[seq_len]``, the answer at halting, of a frame's dtype; empty after an error.
        steps: segments used; 0 after an error.
        q_halt, q_continue: logits at halting; NaN after an error.
        trace: the answer after each segment, where it was asked for; else empty.
        error: why the puzzle was not taken; None where all is well.
    """

    index: int
    tokens: np.ndarray
    steps: int
    q_halt: float
    q_continue: float
    trace: tuple[Frame, ...] = ()
    error: InputError | None = None

    @property
    def confidence(self) -> float:
        """The model's own estimate of the probability that the answer is right."""
        return sigmoid(self.q_halt)


class Engine:
    """Runs a model on puzzles that come and go, in a thread of its own.

    Rows do not influence each other: on the ``cpu`` backend a puzzle's answer and Q values are the same to the bit in
    any slot, beside any other puzzles, and with any number of slots and threads. On the ``reference`` backend they are
    close: PyTorch's products on a CPU may round a row differently by its place and by how many there are.

    ::

        with hrm.Engine(model, slots=64) as engine:
            for result in engine.solve(puzzles):
                print(result.tokens, result.steps, result.confidence)

    On a CPU the thread that makes the engine, or calls :meth:`solve`, lets go of its OpenMP threads
    (:func:`hrm.openmp.release_threads`): the worker then has the cores to itself.

    On a GPU a segment, with the refill of rows before it and the answers after it, is one CUDA graph
    (``HRM_KERNELS_GRAPHS=0`` in the environment: launch by launch).

    :meth:`submit` may be called from any thread. Until the ``with`` ends (or :meth:`close`) the model is in evaluation
    mode and belongs to the engine. An engine that nobody holds any more finishes what was brought and ends; one that
    is open when the program ends is cancelled. A forked child has no worker: an engine refuses puzzles there.

    Args:
        model: an :class:`hrm.HRM` or :class:`hrm.TRM`, on any device.
        slots: puzzles side by side.
        max_steps: the most segments for a puzzle, below 2**31; it may exceed the model's ``halt_max_steps``.
        min_steps: the least.
        halt: ``"q"`` as soon as q_halt > q_continue (q_halt > 0 of a TRM, whose q_continue is 0), ``"fixed"`` after
            ``max_steps`` as published, ``"stable:K"`` when the answer has not changed for K segments, ``"margin:X"``
            when q_halt - q_continue > X, or a function of a :class:`hrm.inference.halting.Moment`.
        backend: of :func:`hrm_kernels.use_backend`, for the engine's thread; None is the choice of the thread that
            makes the engine. Engines that run at the same time must ask for the same.
        queue_size: puzzles that may wait for a slot; None is four for each slot. Whoever brings more has to wait.

    Raises:
        InputError: a number or ``halt`` is impossible, memory cannot hold so many slots, or a running engine has asked
            for another backend.
        ValueError: there is no such backend.
        EngineError: the program is ending.
    """

    def __init__(
        self,
        model: HRM,
        slots: int = 64,
        max_steps: int = 16,
        min_steps: int = 1,
        halt: str | Halting = "q",
        backend: str | None = None,
        queue_size: int | None = None,
    ) -> None:
        require_positive(slots=slots, max_steps=max_steps, min_steps=min_steps, queue_size=queue_size)
        if min_steps > max_steps:
            raise InputError(f"min_steps is {min_steps}, more than max_steps {max_steps}")
        if max_steps > _MOST_STEPS:
            raise InputError(f"max_steps is {max_steps}, expected at most {_MOST_STEPS}")
        self.model, self.slots, self.max_steps, self.min_steps = model, int(slots), int(max_steps), int(min_steps)
        _check_memory(model, self.slots)
        self.halting = parse_halting(halt)
        self.queue_size = 4 * self.slots if queue_size is None else int(queue_size)
        self.backend = backend
        self._numbers = count()
        self._worker = _Worker(
            model, self.slots, self.max_steps, self.min_steps, self.halting, backend, self.queue_size
        )
        # The worker does not hold the engine, so that one which is dropped is collected.
        weakref.finalize(self, self._worker.drop).atexit = False
        self._worker.start()

    # What callers do

    def submit(self, puzzle: Any, identifier: int = 0, *, trace: bool = False) -> "Future[Result]":
        """Bring one puzzle; waits while the queue is full, for its turn among all who do.

        The future can be cancelled until it is done: a puzzle that already thinks then leaves its slot after the
        current segment. It raises :class:`hrm.InputError` for a puzzle that does not fit the model or cannot be read,
        and :class:`EngineError` where the worker has failed. Its callbacks run in the worker, one after another: they
        should be quick, what they submit is queued at once, and what they raise is logged.

        Args:
            puzzle: ``[seq_len]`` integers, or a :class:`Puzzle`.
            identifier: row of the puzzle embedding, unless a :class:`Puzzle` says it.
            trace: keep the answer after each segment.

        Raises:
            EngineError: the engine is closed, has failed, or runs in the process that this one was forked from.
        """
        job = self._numbered(puzzle, identifier, trace)
        self._bring([] if job.future.done() else [job])
        return job.future

    async def asubmit(self, puzzle: Any, identifier: int = 0, *, trace: bool = False) -> Result:
        """:meth:`submit` and its result; cancelling the task that awaits it cancels the puzzle."""
        job = self._numbered(puzzle, identifier, trace)
        await self._abring(job)
        return await asyncio.wrap_future(job.future)

    def solve(self, puzzles: Iterable[Any], ordered: bool = True, *, trace: bool = False) -> Iterator[Result]:
        """The results of ``puzzles`` (each as in :meth:`submit`), one by one.

        Puzzles are taken from the iterable as results are taken from the iterator, twice as many ahead as slots and
        queue hold. One that does not fit the model or cannot be read gives a result with ``error`` set. Leaving the
        iterator early cancels what is under way. Where ``puzzles`` raises, the results of those before come first.

        Args:
            puzzles: ``[n, seq_len]`` integers, or any iterable, finite or not.
            ordered: results in the order of the puzzles, or as they come (``index`` tells which).
            trace: keep the answers after each segment.

        Raises:
            InputError: ``puzzles`` is a single one.
            EngineError: as for :meth:`submit`.
            concurrent.futures.CancelledError: it was closed with ``cancel`` meanwhile.
        """
        _check_several(puzzles)
        release_threads()
        inbox = _Inbox(ordered, self._worker)
        source, index = iter(puzzles), 0
        size = later = 1
        if isinstance(puzzles, Sized):  # they are there already: they start together, and come in bulk
            size, later = min(self.slots, self.queue_size), max(1, min(self.slots, self.queue_size // 4))
        failure: Exception | None = None
        try:
            while failure is None:
                given = []
                try:
                    for one in islice(source, size):
                        given.append(one)
                except Exception as error:
                    failure = error
                if not given:
                    break
                some = [_Streamed(number, inbox, trace) for number in range(index, index + len(given))]
                index += len(given)
                self._give(some, given)
                refused = [job for job in some if job.outcome is not None]
                try:
                    self._bring([job for job in some if job.outcome is None])
                except EngineError as error:
                    failure = error
                    break
                inbox.expect(some, refused)
                while inbox.expected and (inbox.expected >= self._ahead or inbox.is_ready()):
                    yield inbox.take()
                size = later
            while inbox.expected:
                yield inbox.take()
            if failure is not None:
                raise failure
        finally:
            inbox.closed = True
            failure = None  # its traceback holds this frame, and with it the engine

    async def asolve(
        self, puzzles: Iterable[Any] | AsyncIterable[Any], *, trace: bool = False
    ) -> AsyncIterator[Result]:
        """:meth:`solve` for ``async for``, in order, each as soon as it is there, whatever ``puzzles`` waits for.

        ``puzzles`` may be an asynchronous iterable.

        Raises:
            InputError, EngineError, CancelledError: as for :meth:`solve`.
        """
        _check_several(puzzles)
        source, index = _each(puzzles), 0
        pending: deque[asyncio.Task[Result]] = deque()

        async def bring() -> "asyncio.Task[Result] | None":
            try:
                one = await anext(source)
            except StopAsyncIteration:
                return None
            job = self._job(_Submitted(index, trace), one)
            await self._abring(job)
            return asyncio.ensure_future(job.aresult())

        coming: asyncio.Task[asyncio.Task[Result] | None] | None = None
        more = True
        failure: Exception | None = None
        try:
            while more or pending:
                if more and not coming and len(pending) < self._ahead:
                    coming = asyncio.ensure_future(bring())
                first = [pending[0]] if pending else []
                await asyncio.wait([*first, *([coming] if coming else [])], return_when=asyncio.FIRST_COMPLETED)
                if coming and coming.done():
                    try:
                        brought = coming.result()
                    except Exception as error:
                        brought, failure = None, error
                    coming = None
                    if brought:
                        pending.append(brought)
                        index += 1
                    else:
                        more = False
                while pending and pending[0].done():
                    yield await pending.popleft()
            if failure is not None:
                raise failure
        finally:
            failure = None  # as in solve
            under_way = [*pending, *([coming] if coming else [])]
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def close(self, cancel: bool = False) -> None:
        """Take no more puzzles, finish those that were brought (or ``cancel`` them), and end the worker.

        Where it is interrupted (Ctrl-C), what is left is cancelled.
        """
        self._worker.close(cancel)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    # Puzzles become jobs

    @property
    def _ahead(self) -> int:
        return 2 * (self.slots + self.queue_size)

    def _numbered(self, puzzle: Any, identifier: int, trace: bool) -> "_Submitted":
        return self._job(_Submitted(next(self._numbers), trace), puzzle, identifier)

    def _job(self, job: "_AnyJob", puzzle: Any, identifier: int = 0) -> "_AnyJob":
        """``job`` with its puzzle, checked: a bad one is settled already."""
        try:
            job.puzzle = self._checked(puzzle if isinstance(puzzle, Puzzle) else Puzzle(puzzle, identifier))
        except InputError as error:
            job.settle(error)
        except Exception as error:  # a puzzle may be any object
            (reason,) = traceback.format_exception_only(type(error), error)[-1:]
            unreadable = InputError(
                f"the puzzle cannot be read ({reason.strip()}); expected {self.model.config.seq_len} integers"
            )
            unreadable.__cause__ = error
            job.settle(unreadable)
        return job

    def _give(self, jobs: "Sequence[_Job]", puzzles: Sequence[Any]) -> None:
        """:meth:`_job` for many, with one check of all tokens where they are plain integer arrays that fit."""
        shape = (self.model.config.seq_len,)
        if all(type(one) is np.ndarray and one.shape == shape and one.dtype.kind in "iu" for one in puzzles):
            tokens = np.array(puzzles, np.int64)
            if self._fits(tokens):
                for job, row in zip(jobs, tokens):
                    job.puzzle = Puzzle(row)
                return
        for job, one in zip(jobs, puzzles):  # each says what is wrong with it
            self._job(job, one)

    def _fits(self, tokens: np.ndarray) -> bool:
        """Whether all int64 ``tokens`` are among the model's."""
        return bool(np.maximum.reduce(tokens.view(np.uint64), axis=None) < self.model.config.vocab_size)  # -1 is huge

    def _checked(self, puzzle: Puzzle) -> Puzzle:
        config = self.model.config
        inputs = np.asarray(puzzle.inputs)
        if inputs.shape != (config.seq_len,) or inputs.dtype.kind not in "iu":
            raise InputError(
                f"the puzzle is {inputs.dtype} of shape {list(inputs.shape)}, expected integers "
                f"[seq_len] = [{config.seq_len}]"
            )
        tokens = inputs.astype(np.int64)
        if not self._fits(tokens):
            least, most = int(inputs.min()), int(inputs.max())
            raise InputError(
                f"the puzzle holds token {least if least < 0 else most}, expected 0 to {config.vocab_size - 1} "
                f"(vocab_size {config.vocab_size})"
            )
        rows = config.num_puzzle_identifiers
        identifier = puzzle.identifier if config.puzzle_emb_ndim else 0
        if not isinstance(identifier, int | np.integer) or not 0 <= identifier < rows:
            raise InputError(
                f"puzzle identifier {identifier!r} is not among the model's {rows}; expected 0 to {rows - 1}"
            )
        if not isinstance(puzzle.noise, Real) or not 0 <= puzzle.noise < math.inf:
            raise InputError(f"noise is {puzzle.noise!r}, expected a number, 0 or more")
        if not isinstance(puzzle.seed, Integral) or not 0 <= puzzle.seed < 2**63:
            raise InputError(f"seed is {puzzle.seed!r}, expected an integer from 0 to 2**63 - 1")
        return Puzzle(tokens, int(identifier), float(puzzle.noise), int(puzzle.seed))

    def _bring(self, jobs: "Sequence[_Job]") -> None:
        if jobs and (turn := self._worker.offer(jobs)):
            try:
                turn.queued.result()
            except BaseException:
                turn.queued.cancel()
                raise

    async def _abring(self, job: "_Submitted") -> None:
        if not job.future.done() and (turn := self._worker.offer([job])):
            await asyncio.wrap_future(turn.queued)


class _Worker:
    """The thread of an engine, and the queue that it takes puzzles from."""

    _starting: ClassVar[threading.Lock] = threading.Lock()  # over the next three
    _running: ClassVar[list["_Worker"]] = []
    _started: ClassVar[weakref.WeakSet["_Worker"]] = weakref.WeakSet()  # those with a thread, running or not
    _exiting: ClassVar[bool] = False
    _modes: Modes  # before any engine had the model

    def __init__(
        self,
        model: HRM,
        slots: int,
        max_steps: int,
        min_steps: int,
        halting: Halting,
        backend: str | None,
        queue_size: int,
    ) -> None:
        self.model, self.slots, self.max_steps, self.min_steps = model, slots, max_steps, min_steps
        self.halting, self.backend, self.queue_size = halting, backend, queue_size
        self._lock = threading.RLock()  # over the queue and the flags
        self._waiting: deque[_Job] = deque()
        self._turns: deque[_Turn] = deque()  # those that wait for room among them
        self._closing = self._cancelling = self._ended = self.forked = False
        self._failure: BaseException | None = None
        self._idle = False
        self._wake: SimpleQueue[None] = SimpleQueue()  # the worker waits here; unlike a lock it is safe in a finalizer
        self._thread = threading.Thread(target=self._work, name="hrm-engine", daemon=True)
        self._left = threading.Event()  # an interrupted join takes a thread for ended (Python 3.11)

    def start(self) -> None:
        """Take the model and the backend, and begin."""
        self._threads = torch.get_num_threads()
        with use_backend(self.backend or requested()):  # refuses an unknown name here, not in the worker
            self._requested = requested()
        try:
            self._begin()
            release_threads()  # from here on the worker computes
            self._thread.start()
        except BaseException:
            self._stop(cancel=True)
            self._end()
            raise

    def close(self, cancel: bool) -> None:
        """End after what was brought, or at once with ``cancel``, and wait for that."""
        try:
            self._stop(cancel)
            self._join()
        except BaseException:
            self._stop(cancel=True)
            self._join()
            raise

    def drop(self) -> None:
        """The engine is gone. Any thread may collect it, whatever it holds: this takes no lock."""
        self._closing = True
        self._wake.put(None)

    def _join(self) -> None:
        if self._thread.ident is not None and self._thread is not threading.current_thread():  # a callback may close
            self._left.wait()
            self._thread.join()

    def _stop(self, cancel: bool) -> None:
        with self._lock:
            self._closing = True
            self._cancelling |= cancel
            self._refuse_turns()
        self._wake.put(None)

    # What engines share: a model may serve several, and the backend is everybody's

    def _begin(self) -> None:
        with self._starting:
            if self._exiting:
                raise EngineError("the program is ending, and no engine starts any more")
            asking = [one for one in self._running if one.backend is not None]
            if self.backend is not None and asking and asking[0].backend != self.backend:
                raise InputError(
                    f"backend is {self.backend!r}, and an engine that asked for {asking[0].backend!r} runs in this "
                    "process, for which there is one; close that first, or ask for the same"
                )
            others = [one._modes for one in self._running if one.model is self.model]
            self._modes = others[0] if others else modes_of(self.model)
            self._running.append(self)
            self._started.add(self)
            self.model.eval()

    def _end(self) -> None:
        with self._starting:
            if self not in self._running:
                return
            self._running.remove(self)
            if not any(one.model is self.model for one in self._running):
                restore_modes(self._modes)

    @classmethod
    def end_all(cls) -> None:
        """Cancel all that run and wait for them: a thread inside torch would abort an interpreter that ends."""
        with cls._starting:
            cls._exiting = True
            started = list(cls._started)
        for one in started:
            one._stop(cancel=True)
        for one in started:
            one._join()

    @classmethod
    def leave_behind(cls) -> None:
        """In a forked child: none of the threads came along, and their locks may be held for ever."""
        cls._starting = threading.Lock()
        for one in list(cls._running):
            one._lock = threading.RLock()
            one._turns.clear()
            one._left = threading.Event()
            one._left.set()
            one.forked = one._ended = one._closing = one._cancelling = True
            one._end()

    # The queue

    def offer(self, jobs: "Sequence[_Job]") -> "_Turn | None":
        """Queue ``jobs``, all or none; where there is no room, their turn.

        Raises:
            EngineError: no more are taken.
        """
        with self._lock:
            if self._closing or self._ended:
                raise self.refusal()
            # what the worker waits for only the worker could bring about
            if threading.current_thread() is self._thread or not self._turns and self._has_room(jobs):
                self._waiting.extend(jobs)
                if self._idle:
                    self._idle = False
                    self._wake.put(None)
                return None
            turn = _Turn(jobs)
            self._turns.append(turn)
            return turn

    def _has_room(self, jobs: "Sequence[_Job]") -> bool:
        return len(self._waiting) + len(jobs) <= self.queue_size

    def _take_turns(self) -> None:
        """First come, first served: who waits for less does not overtake who waits for more."""
        while self._turns and self._has_room(self._turns[0].jobs):
            turn = self._turns.popleft()
            if turn.queued.set_running_or_notify_cancel():
                self._waiting.extend(turn.jobs)
                turn.queued.set_result(None)

    def _refuse_turns(self) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if turn.queued.set_running_or_notify_cancel():
                turn.queued.set_exception(self.refusal())

    def refusal(self) -> EngineError:
        """Why no more are taken."""
        if self.forked:
            return EngineError(
                f"the engine runs in the process that this one ({os.getpid()}) was forked from; make an engine here"
            )
        error = EngineError("the engine is closed" if self._failure is None else _FAILED)
        error.__cause__ = self._failure
        return error

    # The thread

    def _work(self) -> None:
        try:
            self._run()
        finally:
            self._left.set()

    def _run(self) -> None:
        seated: list[_Job | None] = []
        try:
            torch.set_num_threads(self._threads)  # each thread has its own number; another one may round otherwise
            # not inference mode: what a model caches must still serve a later training step
            device = torch.cuda.device_of(next(self.model.parameters()))
            with device, torch.no_grad(), use_backend(self._requested):
                seated += [None] * self.slots
                slots = _Slots(self, seated)
                while self._fill(slots):
                    slots.segment()
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self._failure = error
        with self._lock:
            self._ended = True
            left = [*filter(None, seated), *self._waiting]
            self._waiting.clear()
            self._refuse_turns()
        try:
            self._end()
        finally:
            _deliver([(job, CancelledError() if self._failure is None else self.refusal()) for job in left])

    def _fill(self, slots: "_Slots") -> bool:
        """Give free slots to waiting puzzles; wait for one if all are free. False: there is nothing more to do."""
        while True:
            with self._lock:
                if self._closing and self._cancelling:
                    return False
                free = slots.free
                while free and self._waiting:
                    job = self._waiting.popleft()
                    self._take_turns()
                    if job.is_cancelled():
                        job.settle(CancelledError())
                    else:
                        slots.put(free.pop(), job)
                if len(free) < self.slots:
                    return True
                if self._closing:
                    return False
                self._idle = True
            self._wake.get()


atexit.register(_Worker.end_all)  # after threads that the program waits for, before the interpreter ends
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Worker.leave_behind)


class _Job(ABC):
    """A puzzle on its way."""

    puzzle: Puzzle

    def __init__(self, index: int, wants_trace: bool) -> None:
        self.index, self.wants_trace = index, bool(wants_trace)
        self.frames: list[Frame] = []

    @abstractmethod
    def is_cancelled(self) -> bool:
        """Nobody waits for it any more."""

    @abstractmethod
    def settle(self, outcome: Result | BaseException) -> None:
        """What has become of it; a CancelledError where that is nothing."""

    def bad(self, error: InputError) -> Result:
        """The result of a puzzle that was not taken."""
        return Result(self.index, np.zeros(0, np.uint8), 0, math.nan, math.nan, error=error)


_AnyJob = TypeVar("_AnyJob", bound=_Job)


class _Turn:
    """Jobs that wait for room in the queue, and what tells whoever brings them."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self.jobs = jobs
        self.queued: Future[None] = Future()


class _Submitted(_Job):
    """One with a future, which stays pending until the end, so that it can be cancelled all the while."""

    def __init__(self, index: int, wants_trace: bool) -> None:
        super().__init__(index, wants_trace)
        self.future = _Future()

    def is_cancelled(self) -> bool:
        return self.future.cancelled()

    def settle(self, outcome: Result | BaseException) -> None:
        if isinstance(outcome, CancelledError):
            self.future.cancel()
        if not self.future.set_running_or_notify_cancel():  # tells concurrent.futures.wait
            return
        if isinstance(outcome, Result):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)

    async def aresult(self) -> Result:
        """Wait for it."""
        try:
            return await asyncio.wrap_future(self.future)
        except InputError as error:
            return self.bad(error)


class _Streamed(_Job):
    """One of a ``solve``: an inbox costs less than a future for each."""

    def __init__(self, index: int, inbox: "_Inbox", wants_trace: bool) -> None:
        super().__init__(index, wants_trace)
        self.inbox = inbox
        self.outcome: Result | BaseException | None = None

    def is_cancelled(self) -> bool:
        return self.inbox.closed

    def settle(self, outcome: Result | BaseException) -> None:
        self.outcome = self.bad(outcome) if isinstance(outcome, InputError) else outcome


class _Inbox:
    """The results of one ``solve``: the worker brings those of a segment together, the caller takes them one by one.

    Attributes:
        expected: results that the caller has not taken yet.
        closed: set by the caller: it takes no more.
    """

    def __init__(self, ordered: bool, worker: _Worker) -> None:
        self.expected, self.closed = 0, False
        self._ordered, self._worker = ordered, worker
        self._brought: SimpleQueue[list[_Streamed]] = SimpleQueue()
        self._next: deque[_Streamed] = deque()  # ordered: all that are expected; else those that are settled

    def bring(self, jobs: list[_Streamed]) -> None:
        """These are settled."""
        self._brought.put(jobs)

    def expect(self, jobs: list[_Streamed], refused: list[_Streamed]) -> None:
        """These come, but for those among them that were ``refused``: they are there."""
        self.expected += len(jobs)
        self._next.extend(jobs if self._ordered else refused)

    def is_ready(self) -> bool:
        """Whether :meth:`take` need not wait."""
        while not self._brought.empty():
            self._receive()
        return self._is_there()

    def take(self) -> Result:
        """Wait for the next one."""
        while not self._is_there():
            self._receive()
        self.expected -= 1
        outcome = self._next.popleft().outcome
        if isinstance(outcome, Result):
            return outcome
        assert outcome is not None
        raise outcome

    def _is_there(self) -> bool:
        return bool(self._next) and self._next[0].outcome is not None

    def _receive(self) -> None:
        if self._worker.forked:
            raise self._worker.refusal()
        jobs = self._brought.get()
        if not self._ordered:
            self._next.extend(jobs)


class _Future(Future[Result]):
    """A future whose callbacks run one after another in their thread, however they nest."""

    def add_done_callback(self, fn: Callable[[Future[Result]], object]) -> None:
        super().add_done_callback(partial(_call_back, fn))


class _Callbacks(threading.local):
    """What is due in this thread; None where no callback runs."""

    due: "deque[tuple[Callable[[Future[Result]], object], Future[Result]]] | None" = None


_callbacks = _Callbacks()


def _call_back(callback: Callable[[Future[Result]], object], future: Future[Result]) -> None:
    """``callback(future)``, after those that are due."""
    if _callbacks.due is not None:
        _callbacks.due.append((callback, future))
        return
    _callbacks.due = deque([(callback, future)])
    if (interrupt := _call_all()) is not None:
        raise interrupt


def _call_all() -> BaseException | None:
    """Run callbacks until none is due. Returns what asks the thread to end, of the first that did."""
    due, interrupt = _callbacks.due, None
    try:
        while due:
            callback, future = due.popleft()
            try:
                callback(future)
            except BaseException as error:  # those after it must hear of their futures
                _LOGGER.exception("exception calling callback for %r", future)
                if not isinstance(error, Exception):
                    interrupt = interrupt or error
    finally:
        _callbacks.due = None
    return interrupt


def _deliver(outcomes: "Sequence[tuple[_Job, Result | BaseException]]") -> None:
    """Settle jobs, and tell those who wait for them; what callbacks raise does not end the worker."""
    _callbacks.due = deque()
    streamed: dict[_Inbox, list[_Streamed]] = {}
    for job, outcome in outcomes:
        job.settle(outcome)
        if isinstance(job, _Streamed):
            streamed.setdefault(job.inbox, []).append(job)
    for inbox, jobs in streamed.items():
        inbox.bring(jobs)
    _call_all()


class _Slots:
    """The batch: who sits where, and what each row stands at.

    Between two segments nothing is computed that nobody asks for: after the kernels numpy and torch find their own code
    out of the caches, and a first call costs some 30 us, half a percent of a small model's segment.
    """

    def __init__(self, worker: _Worker, jobs: list[_Job | None]) -> None:
        self.worker, self.jobs = worker, jobs
        config, slots = worker.model.config, worker.slots
        self.device = next(worker.model.parameters()).device
        self.new: list[int] = []
        self.steps = [0] * slots
        self.unchanged = np.zeros(slots, np.int64)
        self.tokens = np.zeros((slots, config.seq_len), np.int32)  # of the segment before, where the rule looks
        self.dtype = np.uint8 if config.vocab_size <= 256 else np.int32
        on_gpu = self.device.type == "cuda"
        self.host = {
            "inputs": torch.zeros(slots, config.seq_len, dtype=torch.int32, device="cpu", pin_memory=on_gpu),
            "puzzle_identifiers": torch.zeros(slots, dtype=torch.int32, device="cpu", pin_memory=on_gpu),
            "halted": torch.zeros(slots, dtype=torch.bool, device="cpu", pin_memory=on_gpu),
        }
        # the same memory as arrays; `starts`: the rows that take new data, whatever the model's own limit says
        self.inputs, self.identifiers, self.starts = (values.numpy() for values in self.host.values())
        batch = {name: values.to(self.device) for name, values in self.host.items() if name != "halted"}
        self.starting = False  # whether any is
        self.carry = worker.model.initial_carry(batch)
        self.answers = torch.zeros(slots, config.seq_len + 2, dtype=torch.int32, device=self.device)
        self.graph = _graph(self.answers, self._think_in_place)
        self.weights = FrozenWeights()

    @property
    def free(self) -> list[int]:
        return [row for row, job in enumerate(self.jobs) if job is None]

    def put(self, row: int, job: _Job) -> None:
        """Seat ``job`` in a free row; it starts with the next segment."""
        self.jobs[row] = job
        self.inputs[row] = job.puzzle.inputs
        self.identifiers[row] = job.puzzle.identifier
        self.steps[row], self.unchanged[row] = 0, -1  # the first answer follows no other
        self.new.append(row)

    def segment(self) -> None:
        """One segment for every row; those that are done, or cancelled, get up."""
        self._start_new_rows()
        answers = self._think()
        self.steps = steps = [step + 1 for step in self.steps]
        ends = self._ends(answers)
        rows = [
            row
            for row, job in enumerate(self.jobs)
            if job is not None and (ends[row] or job.wants_trace or job.is_cancelled())
        ]
        if not rows:
            return
        gone: list[tuple[_Job, Result | BaseException]] = []
        q_halt, q_continue = answers.q_halt.tolist(), answers.q_continue.tolist()
        for row, answer in zip(rows, answers.tokens(rows).astype(self.dtype)):
            halt, go_on = q_halt[row], q_continue[row]
            job = self.jobs[row]
            assert job is not None
            if job.wants_trace:
                job.frames.append(Frame(steps[row], answer, halt, go_on))
            if job.is_cancelled():
                gone.append((job, CancelledError()))
            elif ends[row]:
                gone.append((job, Result(job.index, answer, steps[row], halt, go_on, tuple(job.frames))))
            else:
                continue
            self.jobs[row] = None
        _deliver(gone)

    def _ends(self, answers: "_Answers") -> list[bool]:
        """The rows that are done, by the rule and within the engine's limits."""
        rule, least, most = self.worker.halting, self.worker.min_steps, self.worker.max_steps
        if rule is halts_at_the_end:
            return [step >= most for step in self.steps]
        if not ignores_answers(rule):
            tokens = answers.tokens(slice(None))
            self.unchanged = (self.unchanged + 1) * (tokens == self.tokens).all(1)
            self.tokens = tokens
        q_halt, q_continue = answers.q_halt.numpy(), answers.q_continue.numpy()
        halts = np.asarray(rule(Moment(np.array(self.steps), self.tokens, self.unchanged, q_halt, q_continue)))
        if halts.dtype != np.bool_ or halts.shape != (len(self.jobs),):
            raise TypeError(
                f"halt returned {halts.dtype} of shape {list(halts.shape)}, expected bool [slots] = [{len(self.jobs)}]"
            )
        return [halt and step >= least or step >= most for halt, step in zip(halts.tolist(), self.steps)]

    def _think(self) -> "_Answers":
        """One segment."""
        if self.graph is not None:
            self.graph(self.host)
        elif self.device.type == "cpu":
            self.carry, outputs = self._call(self.carry, self.host)
            logits = outputs["logits"]
            return _Answers(
                lambda rows: logits[rows].argmax(-1).numpy(), outputs["q_halt_logits"], outputs["q_continue_logits"]
            )
        else:
            self._think_in_place(
                {name: values.to(self.device, non_blocking=True) for name, values in self.host.items()}
            )
        host = self.answers.to("cpu", copy=True)  # one copy, one wait, for the copies to the device too
        q_halt, q_continue = host[:, -2:].view(torch.float32).unbind(1)
        return _Answers(lambda rows: host[rows, :-2].numpy(), q_halt, q_continue)

    def _think_in_place(self, inputs: dict[str, torch.Tensor]) -> None:
        """What a graph repeats: a segment on the device, whose results lie where those of the one before lay."""
        new, outputs = self._call(self.carry, inputs)
        for name in ("z_H", "z_L", "steps"):
            getattr(self.carry, name).copy_(getattr(new, name))
        for name, values in new.current_data.items():
            self.carry.current_data[name].copy_(values)
        q = [outputs[name].view(torch.int32).unsqueeze(1) for name in ("q_halt_logits", "q_continue_logits")]
        self.answers.copy_(torch.cat([outputs["logits"].argmax(-1).int(), *q], 1))

    def _call(self, carry: Carry, inputs: dict[str, torch.Tensor]) -> tuple[Carry, dict[str, torch.Tensor]]:
        batch = {name: values for name, values in inputs.items() if name != "halted"}
        with self.weights:
            return self.worker.model(replace(carry, halted=inputs["halted"]), batch)

    def _start_new_rows(self) -> None:
        if self.starting:
            self.starts[:] = False
            self.starting = False
        if self.new:
            self.starting = True
            self.starts[self.new] = True
            for row in self.new:
                if self.jobs[row].puzzle.noise:  # type: ignore[union-attr]
                    self._start_with_noise(row)
            self.new = []
            if self.graph is not None:
                self.weights.refresh()
                refresh(self.worker.model.parameters())

    def _start_with_noise(self, row: int) -> None:
        """What the model does for a halted row, but from other states."""
        job, inner = self.jobs[row], self.worker.model.inner
        assert job is not None
        self.starts[row] = False
        options: Any = {"generator": torch.Generator("cpu").manual_seed(job.puzzle.seed), "device": "cpu"}
        for state, start in ((self.carry.z_H, inner.H_init), (self.carry.z_L, inner.L_init)):
            noise = torch.randn(state.shape[1:], dtype=torch.float32, **options) * job.puzzle.noise
            state[row] = start + noise.to(start)
        self.carry.steps[row] = 0
        for name, values in self.carry.current_data.items():
            values[row] = self.host[name][row]


class _Answers(NamedTuple):
    """What a segment says, on the host.

    Attributes:
        tokens: gives ``[rows, seq_len]`` integers, the most likely ones, for the rows that are asked for.
        q_halt, q_continue: ``[slots]`` float32.
    """

    tokens: Callable[[list[int] | slice], np.ndarray]
    q_halt: torch.Tensor
    q_continue: torch.Tensor


def _check_memory(model: HRM, slots: int) -> None:
    """
    Raises:
        InputError: what a segment reads and writes for ``slots`` puzzles is more than all memory.
    """
    config, device = model.config, next(model.parameters()).device
    words = 4 * config.positions * config.hidden_size + config.seq_len * config.vocab_size  # both states, twice; logits
    each = words * config.dtype.itemsize
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else _host_memory()
    if memory is not None and slots * each > memory:
        raise InputError(
            f"slots is {slots}: their states and logits alone take {slots * each >> 20} MiB, and {device} has "
            f"{memory >> 20}; at most {memory // each} fit"
        )


def _host_memory() -> int | None:
    """Bytes that this process may have; None where the system does not say."""
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # a container's
        try:
            sizes.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # "max" is no limit
            pass
    return min(sizes)


def _check_several(puzzles: object) -> None:
    """
    Raises:
        InputError: ``puzzles`` is a single one, whose tokens would be taken for puzzles.
    """
    if isinstance(puzzles, np.ndarray | torch.Tensor):
        if puzzles.ndim >= 2 or puzzles.ndim == 1 and puzzles.dtype == np.object_:
            return
        what = f"an array of shape {list(puzzles.shape)}"
    elif isinstance(puzzles, Puzzle | str | bytes):
        what = f"a {type(puzzles).__name__}"
    else:
        return
    raise InputError(f"puzzles is {what}, expected several, such as [n, seq_len]; give [puzzle] for a single one")


def _graph(answers: torch.Tensor, step: Callable[[dict[str, torch.Tensor]], None]) -> StepGraph | None:
    """What replays a segment as one CUDA graph, on a GPU."""
    if not capturable(answers):
        return None
    return StepGraph(step, CudaCapture(answers.device, "HRM_KERNELS_GRAPHS=0 in the environment"), answers.device)


async def _each(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for one in items:
            yield one
    else:
        for one in items:
            yield one


def sigmoid(logit: float) -> float:
    """``1 / (1 + exp(-logit))``, which cannot overflow."""
    return 0.5 * (1 + math.tanh(0.5 * logit))

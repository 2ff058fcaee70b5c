"""A puzzle on its way through the engine."""

import asyncio
from abc import ABC, abstractmethod
from concurrent.futures import CancelledError
from typing import Any

from hrm.errors import InputError
from hrm.inference.engine.callbacks import JobFuture
from hrm.inference.engine.puzzles import Puzzle, PuzzleReader
from hrm.inference.engine.results import Result, Trajectory


class Job(ABC):
    """A puzzle and where its result goes.

    Attributes:
        index: the result's.
        wants_trace: whether to keep the answer after each segment.
        puzzle: what to solve; unset if it was refused.
        started: number of its trajectories that have taken a slot.
        needs_slot: whether another trajectory is to start.
        ended: number of trajectories that have halted, or cannot be the answer any more.
        halted: those that have halted.
        best: (segments, number) of the trajectory with a verified answer that needed the fewest segments.
        is_decided: it has its outcome; its other trajectories end.
        is_settled: the outcome has been set.
    """

    puzzle: Puzzle

    def __init__(self, index: int, wants_trace: bool) -> None:
        self.index, self.wants_trace = index, bool(wants_trace)
        self.started, self.ended, self.halted = 0, 0, list[Trajectory]()
        self.best: tuple[int, int] | None = None
        self.needs_slot = True
        self.is_decided = self.is_settled = False

    def read(self, reader: PuzzleReader, puzzle: Any, identifier: int = 0) -> None:
        """Set the puzzle; settle the job if it cannot be read, does not fit, or is its own answer."""
        try:
            self.take(reader, reader.read(puzzle, identifier))
        except InputError as error:
            self.settle(error)

    def take(self, reader: PuzzleReader, puzzle: Puzzle) -> None:
        """Set a checked puzzle; settle the job if it is its own answer."""
        self.puzzle = puzzle
        if (solved := reader.result_of_solved(self.index, puzzle)) is not None:
            self.settle(solved)

    @abstractmethod
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the result any more."""

    def settle(self, outcome: Result | BaseException) -> None:
        """Set the result, or the error, which is a CancelledError if the job ends without a result; only once."""
        if not self.is_settled:
            self.is_settled = True
            self.decide()
            self._set(outcome)

    def decide(self) -> None:
        """No other trajectory is needed."""
        self.is_decided, self.needs_slot = True, False

    @abstractmethod
    def _set(self, outcome: Result | BaseException) -> None:
        """Hand over the outcome."""


class FutureJob(Job):
    """A job with a future, which stays pending until the end so that it can be cancelled at any time."""

    def __init__(self, index: int, wants_trace: bool) -> None:
        super().__init__(index, wants_trace)
        self.future = JobFuture()

    def is_cancelled(self) -> bool:
        return self.future.cancelled()

    def _set(self, outcome: Result | BaseException) -> None:
        if isinstance(outcome, CancelledError):
            self.future.cancel()
        if not self.future.set_running_or_notify_cancel():  # it notifies concurrent.futures.wait
            return
        if isinstance(outcome, Result):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)

    async def result(self) -> Result:
        """Wait for the result; a puzzle that was refused has one with ``error`` set."""
        try:
            return await asyncio.wrap_future(self.future)
        except InputError as error:
            return Result.refused(self.index, error)

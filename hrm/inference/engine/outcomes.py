"""From the answers of a puzzle's trajectories to its result."""

from dataclasses import replace
from typing import TypeAlias

import numpy as np

from hrm.inference.engine.jobs import Job
from hrm.inference.engine.results import Frame, Result, Trajectory
from hrm.inference.engine.trajectories import RunningTrajectory, Trajectories
from hrm.inference.engine.verification import Verifier
from hrm.inference.selection import Candidate, choices, choose, mean_residual

Outcome: TypeAlias = Result | BaseException


class Outcomes:
    """Checks the answers of trajectories, and decides when and how a puzzle is answered.

    Args:
        verifier: checks the answers; None leaves them unchecked.
        settings: number of trajectories, and which answer is taken.
    """

    def __init__(self, verifier: Verifier | None, settings: Trajectories) -> None:
        self._verifier, self._settings, self._order = verifier, settings, settings.order

    def finished(self, running: RunningTrajectory, last: Frame, residuals: np.ndarray) -> Outcome | None:
        """The outcome of the puzzle, now that one of its trajectories has halted; None if it waits for others.

        Args:
            running: the trajectory.
            last: its last frame.
            residuals: of its last segments, as many as are kept.

        The error is an :class:`ImpossiblePuzzle`, or what the check of a task raises: one puzzle fails, not the engine.
        """
        try:
            return self._finished(running, last, mean_residual(residuals))
        except Exception as error:
            return error

    def halts_by_check(self, running: RunningTrajectory, tokens: np.ndarray) -> bool:
        """Whether the check accepts the answer to a trajectory's variant; also if it fails, which :meth:`finished`
        reports."""
        try:
            return self._verifier is not None and self._verifier.reason(running.inputs, tokens) is None
        except Exception:
            return True

    def _finished(self, running: RunningTrajectory, last: Frame, residual: float) -> Result | None:
        job, verifier, count = running.job, self._verifier, self._settings.count
        verified, reason = None, None
        if verifier is not None:
            reason = verifier.reason(job.puzzle.inputs, last.tokens)
            verified = verifier.verdict(reason)
            if reason is not None and not job.halted:
                verifier.require_possible(job.puzzle.inputs)
        trajectory = Trajectory.of(running.number, last, residual, tuple(running.frames), verified, reason)
        if count == 1:
            return self._result(job, trajectory)
        job.halted.append(trajectory)
        place = (trajectory.steps, trajectory.number)
        if self._settings.stops and verified and (job.best is None or place < job.best):
            job.best = place
            if trajectory.steps == 1:  # those that have not started have higher numbers
                job.ended += count - job.started
                job.needs_slot = False
        return self.ended(job)

    def ended(self, job: Job) -> Result | None:
        """Another trajectory of ``job`` has ended. Returns the result if it was the last one."""
        job.ended += 1
        if job.ended < self._settings.count:
            return None
        trajectories = sorted(
            (one for one in job.halted if job.best is None or (one.steps, one.number) <= job.best),
            key=lambda one: one.number,
        )
        candidates = [Candidate(one.tokens, one.q_halt, one.residual, one.verified) for one in trajectories]
        numbers = {rule: trajectories[at].number for rule, at in choices(self._order, candidates).items()}
        result = self._result(job, trajectories[choose(self._order, candidates)])
        return replace(result, trajectories=tuple(trajectories), chosen=numbers)

    def _result(self, job: Job, trajectory: Trajectory) -> Result:
        """The result with the answer of ``trajectory``, or without one if it is wrong and the engine abstains."""
        one = trajectory
        tokens = one.tokens[:0] if self._verifier and self._verifier.abstain and not one.verified else one.tokens
        return Result(
            job.index,
            tokens,
            one.steps,
            one.q_halt,
            one.q_continue,
            one.trace,
            verified=one.verified,
            reason=one.reason,
        )

"""The batch: a fixed number of slots that trajectories take, and free when they halt."""

import math
from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np

from hrm.inference.damping import AdaptiveDamping, RowWeights
from hrm.inference.engine.delivery import deliver
from hrm.inference.engine.jobs import Job
from hrm.inference.engine.outcomes import Outcome, Outcomes
from hrm.inference.engine.results import Frame, answer_dtype
from hrm.inference.engine.segment import Answers, SegmentRunner
from hrm.inference.engine.trajectories import RunningTrajectory, Trajectories
from hrm.inference.engine.verification import Verifier
from hrm.inference.halting import Halting, Moment, halts_at_the_end, needs
from hrm.inference.selection import WINDOW
from hrm.model import HRM


@dataclass(frozen=True)
class BatchSettings:
    """The model of a batch, its size, when a puzzle halts, and which answer it gets.

    Attributes:
        model: in evaluation mode.
        slots: number of trajectories side by side.
        min_steps, max_steps: least and most segments of a trajectory.
        halting: the rule in between.
        verifier: checks the answers; None leaves them unchecked.
        trajectories: of each puzzle.
        damping: of segments that do not come closer to a fixed point; None for none.
    """

    model: HRM
    slots: int
    min_steps: int
    max_steps: int
    halting: Halting
    verifier: Verifier | None = None
    trajectories: Trajectories = Trajectories()
    damping: AdaptiveDamping | None = None


class SlotBatch:
    """The trajectories in the slots, one row each, and their progress.

    Between two segments only what is needed is computed: the kernels have replaced the code of numpy and torch in the
    caches, so a first call of a function takes some 30 us, half a percent of a small model's segment.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.size = settings.slots
        self._settings = settings
        self._needs = needs(settings.halting)
        damping, noise = settings.damping, bool(settings.trajectories.noise)
        several = settings.trajectories.count > 1
        window = max(self._needs.residuals, WINDOW if several else 0, 0 if damping is None else 1)
        self._runner = SegmentRunner(settings.model, settings.slots, noise, window > 0, damping is not None)
        self._weights = None if damping is None else RowWeights(damping, self._runner.weights)
        self._outcomes = Outcomes(settings.verifier, settings.trajectories)
        self._rows: list[RunningTrajectory | None] = [None] * self.size
        config = settings.model.config
        self._dtype = answer_dtype(config)
        self._steps = [0] * self.size
        # for rules that compare answers:
        self._unchanged = np.zeros(self.size, np.int64)
        self._tokens = np.zeros((self.size, config.seq_len), np.int32)  # of the segment before
        self._verified = np.zeros(self.size, bool)
        # for rules that look at residuals, and for the choice among trajectories:
        self._residuals = np.full((self.size, window), np.inf, np.float32)

    @property
    def free(self) -> list[int]:
        """Rows without a trajectory."""
        return [row for row, running in enumerate(self._rows) if running is None]

    @property
    def running(self) -> list[Job]:
        """Jobs with a trajectory in a slot."""
        return list(dict.fromkeys(running.job for running in self._rows if running is not None))

    def start(self, row: int, job: Job) -> None:
        """Start the next trajectory of ``job`` in a free row with the next segment."""
        settings = self._settings
        task = None if settings.verifier is None else settings.verifier.task
        running = RunningTrajectory(job, job.started, settings.trajectories, task)
        job.started += 1
        job.needs_slot = job.started < settings.trajectories.count
        self._rows[row] = running
        self._runner.start(row, running)
        self._steps[row], self._unchanged[row] = 0, -1  # the first answer follows no other
        self._residuals[row] = np.inf
        if self._weights is not None:
            self._weights.restart(row)

    def run_segment(self) -> None:
        """Run one segment for every row; free finished and cancelled rows, and deliver results."""
        answers = self._runner.run()
        self._steps = steps = [step + 1 for step in self._steps]
        if answers.residual is not None:
            self._residuals = np.append(self._residuals[:, 1:], answers.residual.numpy()[:, None], 1)
            if self._weights is not None:
                for row, value in enumerate(answers.residual.tolist()):
                    self._weights.update(row, value)
        halts = self._halts(answers)
        rows = [
            row
            for row, running in enumerate(self._rows)
            if running is not None and (halts[row] or running.job.wants_trace or running.job.is_cancelled())
        ]
        if not rows:
            return
        outcomes: list[tuple[Job, Outcome]] = []
        q_halts, q_continues = answers.q_halt.tolist(), answers.q_continue.tolist()
        for row, tokens in zip(rows, answers.tokens(rows).astype(self._dtype)):
            running = self._rows[row]
            assert running is not None
            job = running.job
            outcome: Outcome | None = None
            if job.is_decided:  # by another trajectory, in this loop
                continue
            residuals = self._residuals[row, -steps[row] :]
            residual = float(residuals[-1]) if len(residuals) else math.nan
            frame = Frame(steps[row], running.answer(tokens), q_halts[row], q_continues[row], residual)
            if job.wants_trace:
                running.frames.append(frame)
            if job.is_cancelled():
                outcome = CancelledError()
            elif halts[row]:
                outcome = self._outcomes.finished(running, frame, residuals)
                self._rows[row] = None
            if outcome is not None:
                job.decide()
                outcomes.append((job, outcome))
        if self._settings.trajectories.count > 1:
            outcomes += self._end_hopeless()
        if outcomes:
            self._rows = [None if running is None or running.job.is_decided else running for running in self._rows]
            deliver(outcomes)

    def _end_hopeless(self) -> list[tuple[Job, Outcome]]:
        """Free the rows of trajectories that are worse than a verified one, whatever they answer.

        Returns the jobs for which no other trajectory was left, with their results.
        """
        outcomes: list[tuple[Job, Outcome]] = []
        for row, running in enumerate(self._rows):
            if running is None or running.job.is_decided or running.job.best is None:
                continue
            if (self._steps[row] + 1, running.number) > running.job.best:
                self._rows[row] = None
                if (result := self._outcomes.ended(running.job)) is not None:
                    running.job.decide()
                    outcomes.append((running.job, result))
        return outcomes

    def _halts(self, answers: Answers) -> list[bool]:
        """Whether each row halts, by the rule and within the limits."""
        rule, least, most = self._settings.halting, self._settings.min_steps, self._settings.max_steps
        if rule is halts_at_the_end:
            return [step >= most for step in self._steps]
        if self._needs.answers:
            tokens = answers.tokens(slice(None))
            same = (tokens == self._tokens).all(1)
            self._unchanged = (self._unchanged + 1) * same
            self._tokens = tokens
            if self._needs.check:
                self._check_answers(same)
        q_halt, q_continue = answers.q_halt.numpy(), answers.q_continue.numpy()
        moment = Moment(
            np.array(self._steps), self._tokens, self._unchanged, q_halt, q_continue, self._residuals, self._verified
        )
        halts = np.asarray(rule(moment))
        if halts.dtype != np.bool_ or halts.shape != (self.size,):
            raise TypeError(
                f"halt returned {halts.dtype} of shape {list(halts.shape)}, expected bool [slots] = [{self.size}]"
            )
        return [halt and step >= least or step >= most for halt, step in zip(halts.tolist(), self._steps)]

    def _check_answers(self, same: np.ndarray) -> None:
        """Check the rows whose answer is new; ``same``: ``[slots]`` bool, rows where it is not."""
        for row, running in enumerate(self._rows):
            if running is not None and not (same[row] and self._steps[row] > 1):
                self._verified[row] = self._outcomes.halts_by_check(running, self._tokens[row])

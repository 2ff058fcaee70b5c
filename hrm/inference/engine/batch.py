"""The batch: a fixed number of slots that puzzles take, and free when they halt."""

from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np

from hrm.inference.engine.delivery import deliver
from hrm.inference.engine.jobs import Job
from hrm.inference.engine.results import Frame, Result, answer_dtype
from hrm.inference.engine.segment import Answers, SegmentRunner
from hrm.inference.engine.verification import Verifier
from hrm.inference.halting import Halting, Moment, halts_at_the_end, ignores_answers
from hrm.model import HRM


@dataclass(frozen=True)
class BatchSettings:
    """The model of a batch, its size, and when a puzzle halts.

    Attributes:
        model: in evaluation mode.
        slots: number of puzzles side by side.
        min_steps, max_steps: least and most segments of a puzzle.
        halting: the rule in between.
        verifier: checks the answers; None leaves them unchecked.
    """

    model: HRM
    slots: int
    min_steps: int
    max_steps: int
    halting: Halting
    verifier: Verifier | None = None


class SlotBatch:
    """The jobs in the slots, one row each, and their progress.

    Between two segments only what is needed is computed: the kernels have replaced the code of numpy and torch in the
    caches, so a first call of a function takes some 30 us, half a percent of a small model's segment.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.size = settings.slots
        self._settings = settings
        self._runner = SegmentRunner(settings.model, settings.slots)
        self._jobs: list[Job | None] = [None] * self.size
        config = settings.model.config
        self._dtype = answer_dtype(config)
        self._steps = [0] * self.size
        # for rules that compare answers:
        self._unchanged = np.zeros(self.size, np.int64)
        self._tokens = np.zeros((self.size, config.seq_len), np.int32)  # of the segment before

    @property
    def free(self) -> list[int]:
        """Rows without a job."""
        return [row for row, job in enumerate(self._jobs) if job is None]

    @property
    def running(self) -> list[Job]:
        """Jobs in slots."""
        return [job for job in self._jobs if job is not None]

    def start(self, row: int, job: Job) -> None:
        """Start ``job`` in a free row with the next segment."""
        self._jobs[row] = job
        self._runner.start(row, job.puzzle)
        self._steps[row], self._unchanged[row] = 0, -1  # the first answer follows no other

    def run_segment(self) -> None:
        """Run one segment for every row; free finished and cancelled rows, and deliver their results."""
        answers = self._runner.run()
        self._steps = steps = [step + 1 for step in self._steps]
        halts = self._halts(answers)
        rows = [
            row
            for row, job in enumerate(self._jobs)
            if job is not None and (halts[row] or job.wants_trace or job.is_cancelled())
        ]
        if not rows:
            return
        outcomes: list[tuple[Job, Result | BaseException]] = []
        q_halts, q_continues = answers.q_halt.tolist(), answers.q_continue.tolist()
        for row, tokens in zip(rows, answers.tokens(rows).astype(self._dtype)):
            q_halt, q_continue = q_halts[row], q_continues[row]
            job = self._jobs[row]
            assert job is not None
            if job.wants_trace:
                job.frames.append(Frame(steps[row], tokens, q_halt, q_continue))
            if job.is_cancelled():
                outcomes.append((job, CancelledError()))
            elif halts[row]:
                result = Result(job.index, tokens, steps[row], q_halt, q_continue, tuple(job.frames))
                outcomes.append((job, self._judged(job, result)))
            else:
                continue
            self._jobs[row] = None
        deliver(outcomes)

    def _judged(self, job: Job, result: Result) -> Result | BaseException:
        """``result``, checked if the engine has a task; the error if the puzzle is impossible, or the check fails."""
        verifier = self._settings.verifier
        try:
            return result if verifier is None else verifier.judged(job.puzzle, result)
        except Exception as error:  # it is the error of one puzzle, not of the engine
            return error

    def _halts(self, answers: Answers) -> list[bool]:
        """Whether each row halts, by the rule and within the limits."""
        rule, least, most = self._settings.halting, self._settings.min_steps, self._settings.max_steps
        if rule is halts_at_the_end:
            return [step >= most for step in self._steps]
        if not ignores_answers(rule):
            tokens = answers.tokens(slice(None))
            self._unchanged = (self._unchanged + 1) * (tokens == self._tokens).all(1)
            self._tokens = tokens
        q_halt, q_continue = answers.q_halt.numpy(), answers.q_continue.numpy()
        halts = np.asarray(rule(Moment(np.array(self._steps), self._tokens, self._unchanged, q_halt, q_continue)))
        if halts.dtype != np.bool_ or halts.shape != (self.size,):
            raise TypeError(
                f"halt returned {halts.dtype} of shape {list(halts.shape)}, expected bool [slots] = [{self.size}]"
            )
        return [halt and step >= least or step >= most for halt, step in zip(halts.tolist(), self._steps)]

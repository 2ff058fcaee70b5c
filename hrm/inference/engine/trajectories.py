"""Several trajectories per puzzle: what makes them differ, and the state of one that runs.

A trajectory starts from other states, is disturbed by noise before each segment, or solves a variant of the puzzle; the
change of the puzzle is undone in its answer. A model with random starts has other states for each seed. Trajectory 0 is
the plain one.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hrm.config import ModelConfig
from hrm.data.maze import Maze
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.inference.engine.results import Frame
from hrm.inference.segments import require_positive
from hrm.inference.selection import DEFAULT_ORDER, parse_order
from hrm.inference.symmetries import Symmetry, has_symmetries, symmetry

if TYPE_CHECKING:
    from hrm.inference.engine.jobs import Job


NOISE = 0.1
"""The noise of trajectories that nothing else makes differ."""


@dataclass(frozen=True)
class Trajectories:
    """Several trajectories per puzzle, side by side, and the choice among their answers.

    Attributes:
        count: trajectories per puzzle.
        noise: standard deviation of normal noise that is added to both states before each segment (PTRM, arXiv
            2605.19943), in all trajectories but the first. The states have a root mean square of 1. None is 0.1, or 0
            if something else makes the trajectories differ.
        start_noise: standard deviation of noise that is added to the initial states, in all but the first.
        augment: all but the first solve a variant of the puzzle (Sudoku, maze).
        seed: seed of all of it. A trajectory depends on this seed, the puzzle's and its own number only.
        select: the rules that choose the answer, in order (:mod:`hrm.inference.selection`).
        stop: if ``check`` is the first rule, end the other trajectories of a puzzle when one has a verified answer. The
            answer is that of the verified trajectory with the fewest segments, then with the lowest number: those that
            may still be it go on. So it does not depend on the slots.

    Raises:
        InputError: a value is invalid.
    """

    count: int = 1
    noise: float | None = None
    start_noise: float = 0.0
    augment: bool = False
    seed: int = 0
    select: str = DEFAULT_ORDER
    stop: bool = True

    def __post_init__(self) -> None:
        require_positive(trajectories=self.count)
        for name in ("noise", "start_noise"):
            if not 0 <= (getattr(self, name) or 0.0) < np.inf:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number, 0 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}, expected an integer from 0 to 2**63 - 1")
        parse_order(self.select)

    @classmethod
    def of(cls, trajectories: "int | Trajectories") -> "Trajectories":
        """``trajectories`` itself, or that number of them."""
        return trajectories if isinstance(trajectories, Trajectories) else cls(trajectories)

    def for_model(self, config: ModelConfig, task: PuzzleTask | None) -> "Trajectories":
        """The settings with ``noise`` as a number.

        Raises:
            InputError: some of the trajectories would be the same.
        """
        differ = config.has_random_starts or self.start_noise > 0 or self.augment
        if self.noise is None:
            return replace(self, noise=0.0 if differ or self.count == 1 else NOISE).for_model(config, task)
        if not config.has_random_starts:
            self._require_different(task)
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """The rules of ``select``."""
        return parse_order(self.select)

    @property
    def stops(self) -> bool:
        """Whether a verified answer ends the other trajectories."""
        return self.stop and self.count > 1 and self.order[0] == "check"

    def _require_different(self, task: PuzzleTask | None) -> None:
        """
        Raises:
            InputError: some of the trajectories would be the same.
        """
        if self.count == 1 or self.noise or self.start_noise:
            return
        if not self.augment:
            raise InputError(
                f"{self.count} trajectories would all be the same; give noise (such as noise=0.1), start_noise "
                "or augment"
            )
        if not has_symmetries(task):
            name = "no task is given" if task is None else f"{task.name} has no variants"
            raise InputError(f"{self.count} trajectories would all be the same: {name}; give noise, such as noise=0.1")
        if isinstance(task, Maze) and self.count > 8:
            raise InputError(
                f"{self.count} trajectories of a maze would see its 8 turns and reflections again, and count their "
                "votes twice; give noise, such as noise=0.1, or at most 8 trajectories"
            )


class RunningTrajectory:
    """A trajectory in a slot.

    Attributes:
        job: its puzzle's.
        number: from 0.
        inputs: ``[seq_len]`` int64, the puzzle or a variant of it.
        seed: of its noise.
        noise, start_noise: as in :class:`Trajectories`; 0 for trajectory 0.
        frames: the answer after each segment so far, if the caller wants a trace.
    """

    __slots__ = ("_change", "frames", "inputs", "job", "noise", "number", "seed", "start_noise")

    def __init__(self, job: "Job", number: int, settings: Trajectories, task: PuzzleTask | None) -> None:
        self.job, self.number = job, number
        self.inputs: np.ndarray = job.puzzle.inputs
        self.frames: list[Frame] = []
        # a family with random starts needs a seed for the first trajectory, too: as in evaluation it is 0
        self.seed = job.puzzle.seed if settings.count == 1 else 0
        self.noise, self.start_noise = 0.0, 0.0
        self._change: Symmetry | None = None
        if number:
            self.noise, self.start_noise = settings.noise or 0.0, settings.start_noise
            rng = np.random.default_rng((settings.seed, job.puzzle.seed, number))
            if settings.augment and task is not None:
                self._change = symmetry(task, number, rng)
                self.inputs = self._change.apply(self.inputs)
            self.seed = int(rng.integers(2**62))

    def answer(self, tokens: np.ndarray) -> np.ndarray:
        """``[seq_len]`` tokens of the answer to ``inputs`` -> the answer to the job's puzzle."""
        return tokens if self._change is None else self._change.undo(tokens).astype(tokens.dtype)

"""Solving puzzles: the model's answer after each segment, until it halts."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hrm.compatibility import check_puzzles_fit
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.inference.board import board_html
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.engine import Engine, Frame, ImpossiblePuzzle, Puzzle, Result, Trajectories, Trajectory
from hrm.inference.halting import Halting, parse_halting
from hrm.inference.segments import require_positive
from hrm.model import HRM
from hrm.progress import Progress, silent


@dataclass(frozen=True, repr=False)
class Solution:
    """A puzzle with its answers.

    Attributes:
        inputs: ``[seq_len]`` uint8, the puzzle.
        frames: the answer after each segment up to the one where the puzzle halts; without a trace only the last one. A
            puzzle that is its own answer, or has no solution, has one frame, of segment 0, with the puzzle.
        reason: why the answer is not valid, None if it is.
        task: how boards look when the solution is printed; None prints no board.
        verified: whether the answer is right, by the task's check; None if the task cannot tell (ARC).
        answered: whether there is an answer. False if the puzzle has no solution, or if the answer is not verified and
            ``abstain`` was set.
        trajectories, chosen: as in :class:`hrm.inference.engine.Result`, if there were several trajectories.
    """

    inputs: np.ndarray
    frames: tuple[Frame, ...]
    reason: str | None
    task: PuzzleTask | None = None
    verified: bool | None = None
    answered: bool = True
    trajectories: tuple[Trajectory, ...] = ()
    chosen: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: np.ndarray, result: Result, task: PuzzleTask) -> "Solution":
        """The solution in a result of an engine with ``task``.

        Raises:
            InputError: the puzzle was refused.
        """
        if result.error is not None and not isinstance(result.error, ImpossiblePuzzle):
            raise result.error
        reason = result.reason if result.error is None else str(result.error)
        answered, frames = len(result.tokens) > 0, result.trace
        if not frames:
            frames = (Frame(result.steps, result.tokens, result.q_halt, result.q_continue),)
        if result.steps == 0:  # no segment was needed
            frames = (Frame(0, inputs, math.inf if answered else -math.inf, 0.0),)
        return cls(inputs, frames, reason, task, result.verified, answered, result.trajectories, result.chosen)

    @property
    def answer(self) -> np.ndarray:
        """``[seq_len]`` uint8, the answer at halting; ``[0]`` if there is none."""
        tokens = self.frames[-1].tokens
        return tokens if self.answered else tokens[:0]

    @property
    def board(self) -> np.ndarray:
        """``[seq_len]`` uint8, the board to show: the answer, or the puzzle if there is none."""
        return self.answer if self.answered else self.inputs

    @property
    def valid(self) -> bool:
        """Whether the answer solves the puzzle."""
        return self.reason is None

    @property
    def steps(self) -> int:
        """Number of segments."""
        return self.frames[-1].step

    @property
    def q_halt(self) -> float:
        """The logit at halting."""
        return self.frames[-1].q_halt

    @property
    def q_continue(self) -> float:
        """The logit at halting."""
        return self.frames[-1].q_continue

    @property
    def confidence(self) -> float:
        """The model's estimate of the probability that the answer is right."""
        return self.frames[-1].confidence

    def changed(self, segment: int) -> np.ndarray:
        """``[seq_len]`` bool, the tokens that ``frames[segment]`` changed; the first frame changes the puzzle."""
        before = self.frames[segment - 1].tokens if segment else self.inputs
        return self.frames[segment].tokens != before

    @property
    def _verdict(self) -> str:
        segments = "1 segment" if self.steps == 1 else f"{self.steps} segments"
        reason = self.reason or "valid"
        return f"{reason if self.answered else f'no answer: {reason}'}, {segments}, confidence {self.confidence:.1%}"

    def __repr__(self) -> str:
        return f"Solution({self._verdict})"

    def __str__(self) -> str:
        return self._verdict if self.task is None else f"{self.task.render(self.board)}\n{self._verdict}"

    def _repr_html_(self) -> str:
        board = "" if self.task is None else board_html(self.task, self.board, self.inputs)
        return f"{board}<p>{html.escape(self._verdict)}</p>"


def solve(
    model: HRM,
    task: PuzzleTask,
    puzzles: np.ndarray,
    *,
    max_steps: int | None = None,
    halt: str | Halting = "auto",
    puzzle_identifiers: np.ndarray | None = None,
    batch_size: int = 64,
    abstain: bool = False,
    trajectories: int | Trajectories = 1,
    damping: str | AdaptiveDamping | None = None,
    trace: bool = True,
    progress: Progress = silent,
) -> list[Solution]:
    """Solve puzzles with a trained model, on the device the model is on.

    Args:
        model: trained on this task; its mode (training, evaluation) is restored.
        task: checks the answers.
        puzzles: ``[n, seq_len]`` input tokens, as ``task.parse`` returns them.
        max_steps: most segments for a puzzle; None is the model's ``halt_max_steps``.
        halt: as for :class:`hrm.Engine`, such as ``"q"`` or ``"fixed"``, which takes ``max_steps`` segments.
        puzzle_identifiers: ``[n]`` rows of the puzzle embedding; None is 0, the blank one, for all.
        batch_size: number of trajectories side by side.
        abstain: give no answer rather than one that the task does not verify.
        trajectories, damping: as for :class:`hrm.Engine`.
        trace: keep the answer after each segment, else only the last one.
        progress: called with the number of solved puzzles.

    Returns:
        ``n`` solutions, in order.

    Raises:
        InputError: task, puzzles or identifiers don't fit the model, or ``abstain`` is set and the task cannot verify
            answers.
    """
    puzzles = _integers("puzzles", puzzles, f"[n, seq_len] = [n, {model.config.seq_len}]", 2)
    identifiers = np.zeros(len(puzzles), np.int64)
    if puzzle_identifiers is not None:
        identifiers = _integers("puzzle_identifiers", puzzle_identifiers, f"[n] = [{len(puzzles)}]", 1)
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    require_positive(max_steps=max_steps, batch_size=batch_size)
    halting = parse_halting(halt, model.folder)
    check_puzzles_fit(model, task, puzzles, identifiers)
    if not len(puzzles):
        return []
    rows = [Puzzle(inputs, int(identifier)) for inputs, identifier in zip(puzzles, identifiers)]
    solutions: list[Solution] = []
    progress("solving", 0, len(rows))
    settings = Trajectories.of(trajectories)
    slots = min(batch_size, len(puzzles) * settings.count)
    engine = Engine(
        model, slots, max_steps, halt=halting, task=task, abstain=abstain, trajectories=settings, damping=damping
    )
    with engine:
        for inputs, result in zip(puzzles.astype(np.uint8), engine.solve(rows, trace=trace)):
            solutions.append(Solution.of(inputs, result, task))
            progress("solving", len(solutions), len(rows))
    return solutions


def _integers(name: str, value: Any, expected: str, dimensions: int) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{name} is not an array ({error}), expected integers {expected}") from None
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        raise InputError(f"{name} is {array.dtype} of shape {list(array.shape)}, expected integers {expected}")
    return array

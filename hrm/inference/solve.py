"""Solving puzzles: the model's answer, segment by segment, until it halts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hrm.compatibility import check_puzzles_fit
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.inference.engine import Engine, Frame, Puzzle
from hrm.inference.halting import Halting, parse_halting
from hrm.inference.segments import require_positive
from hrm.model import HRM
from hrm.progress import Progress, silent


@dataclass(frozen=True)
class Solution:
    """How a puzzle was solved.

    Attributes:
        inputs: ``[seq_len]`` uint8, the puzzle.
        frames: the answer after each segment up to the one where the puzzle halted.
        reason: why the answer is not valid, None where it is.
    """

    inputs: np.ndarray
    frames: tuple[Frame, ...]
    reason: str | None

    @property
    def answer(self) -> np.ndarray:
        """``[seq_len]`` uint8, the answer at halting."""
        return self.frames[-1].tokens

    @property
    def valid(self) -> bool:
        """Whether the answer solves the puzzle."""
        return self.reason is None

    @property
    def steps(self) -> int:
        """Segments used."""
        return len(self.frames)

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
        """The model's own estimate of the probability that the answer is right."""
        return self.frames[-1].confidence

    def changed(self, segment: int) -> np.ndarray:
        """``[seq_len]`` bool, the tokens that ``frames[segment]`` changed; the first one changes the puzzle."""
        before = self.frames[segment - 1].tokens if segment else self.inputs
        return self.frames[segment].tokens != before


def solve(
    model: HRM,
    task: PuzzleTask,
    puzzles: np.ndarray,
    *,
    max_steps: int | None = None,
    halt: str | Halting = "q",
    puzzle_identifiers: np.ndarray | None = None,
    batch_size: int = 64,
    progress: Progress = silent,
) -> list[Solution]:
    """Solve puzzles with a trained model, on the device the model is on.

    Args:
        model: trained on this task; its mode (training, evaluation) is restored.
        task: checks the answers.
        puzzles: ``[n, seq_len]`` input tokens, as ``task.parse`` gives them.
        max_steps: the most segments for a puzzle; None is the model's ``halt_max_steps``.
        halt: as for :class:`hrm.Engine`: ``"q"`` ends a puzzle where its q_halt exceeds its q_continue, ``"fixed"``
            after ``max_steps`` segments.
        puzzle_identifiers: ``[n]`` rows of the puzzle embedding; None is 0, the blank one, for all.
        batch_size: puzzles solved side by side.
        progress: told how many puzzles are done.

    Returns:
        ``n`` solutions, in order.

    Raises:
        InputError: task, puzzles or identifiers don't fit the model.
    """
    puzzles = _integers("puzzles", puzzles, f"[n, seq_len] = [n, {model.config.seq_len}]", 2)
    identifiers = np.zeros(len(puzzles), np.int64)
    if puzzle_identifiers is not None:
        identifiers = _integers("puzzle_identifiers", puzzle_identifiers, f"[n] = [{len(puzzles)}]", 1)
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    require_positive(max_steps=max_steps, batch_size=batch_size)
    halting = parse_halting(halt)
    check_puzzles_fit(model, task, puzzles, identifiers)
    if not len(puzzles):
        return []
    given = [Puzzle(inputs, int(identifier)) for inputs, identifier in zip(puzzles, identifiers)]
    solutions: list[Solution] = []
    progress("solving", 0, len(given))
    with Engine(model, min(batch_size, len(puzzles)), max_steps, halt=halting) as engine:
        for inputs, result in zip(puzzles.astype(np.uint8), engine.solve(given, trace=True)):
            solutions.append(Solution(inputs, result.trace, task.check(inputs, result.tokens)))
            progress("solving", len(solutions), len(given))
    return solutions


def _integers(name: str, value: Any, expected: str, dimensions: int) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{name} is no array ({error}), expected integers {expected}") from None
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        raise InputError(f"{name} is {array.dtype} of shape {list(array.shape)}, expected integers {expected}")
    return array

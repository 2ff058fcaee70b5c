"""The answers of a model after each segment, and when it halts."""

from dataclasses import dataclass

import numpy as np

from hrm.act import prefers_halting
from hrm.data.format import IGNORE_LABEL, PuzzleDataset
from hrm.data.sudoku import Sudoku, solve
from hrm.data.task import PuzzleTask
from hrm.inference.engine import Engine, Frame
from hrm.inference.examples import LabelledPuzzles
from hrm.inference.segments import require_positive
from hrm.model import HRM
from hrm.progress import Progress, silent


@dataclass(frozen=True, repr=False)
class Answers:
    """The answers to ``n`` puzzles after each of ``steps`` segments; no puzzle halts.

    Attributes:
        inputs: ``[n, seq_len]`` int32.
        labels: ``[n, seq_len]`` int32; at -100 every token is right.
        tokens: ``[steps, n, seq_len]`` uint8, or int32 for a larger vocabulary.
        q_halt, q_continue: ``[steps, n]`` float32 logits.
    """

    inputs: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    q_halt: np.ndarray
    q_continue: np.ndarray

    @property
    def steps(self) -> int:
        """Number of segments."""
        return len(self.tokens)

    @property
    def tokens_right(self) -> np.ndarray:
        """``[steps, n]`` float64: the share of a puzzle's labelled tokens that is right."""
        labelled = self.labels != IGNORE_LABEL
        return ((self.tokens == self.labels) & labelled).sum(-1) / labelled.sum(-1)

    @property
    def right(self) -> np.ndarray:
        """``[steps, n]`` bool: whether every labelled token is right."""
        return ((self.tokens == self.labels) | (self.labels == IGNORE_LABEL)).all(-1)

    @property
    def halting_steps(self) -> np.ndarray:
        """``[n]`` int64: the first segment where q_halt > q_continue, otherwise the last one."""
        halts = prefers_halting(self.q_halt, self.q_continue)
        halts[-1] = True
        return halts.argmax(0) + 1

    @property
    def right_when_halting(self) -> np.ndarray:
        """``[n]`` bool: whether the answer at ``halting_steps`` is right."""
        return self.right[self.halting_steps - 1, np.arange(len(self.inputs))]

    def __repr__(self) -> str:
        return (
            f"Answers({len(self.inputs):,} puzzles: {self.right[-1].mean():.2%} solved after {self.steps} segments, "
            f"{self.right_when_halting.mean():.2%} when halting by Q after {self.halting_steps.mean():.2f})"
        )

    def trace(self, index: int) -> tuple[Frame, ...]:
        """The answers to one puzzle up to the segment where it halts."""
        return tuple(
            Frame(
                step + 1, self.tokens[step, index], float(self.q_halt[step, index]), float(self.q_continue[step, index])
            )
            for step in range(self.halting_steps[index])
        )


def answers_by_segment(
    model: HRM,
    dataset: PuzzleDataset,
    *,
    max_steps: int | None = None,
    max_examples: int | None = None,
    slots: int = 64,
    progress: Progress = silent,
) -> Answers:
    """Run every labelled puzzle of ``dataset`` through all segments.

    Args:
        model: the model; its mode is restored.
        dataset: puzzles of the model's shape.
        max_steps: number of segments; None is the model's ``halt_max_steps``.
        max_examples: use only this many puzzles, from the start.
        slots: puzzles solved at the same time.
        progress: receives the number of finished puzzles.

    Raises:
        InputError: data set and model do not fit, no puzzle has labels, or a number is not positive.
    """
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    require_positive(max_steps=max_steps, max_examples=max_examples, slots=slots)
    puzzles = LabelledPuzzles(model, dataset, max_examples)
    progress("answers after each segment", 0, puzzles.count)
    with Engine(model, min(slots, puzzles.count), max_steps, halt="fixed") as engine:
        results = []
        for result in engine.solve(puzzles.puzzles, trace=True):
            if result.error is not None:
                raise result.error
            results.append(result)
            progress("answers after each segment", len(results), puzzles.count)
    columns = [
        np.stack([[getattr(frame, name) for frame in result.trace] for result in results], 1)
        for name in ("tokens", "q_halt", "q_continue")
    ]
    inputs = np.stack([puzzle.inputs for puzzle in puzzles.puzzles])
    return Answers(inputs, puzzles.labels, columns[0], *(values.astype(np.float32) for values in columns[1:]))


def difficulty(task: PuzzleTask, inputs: np.ndarray, labels: np.ndarray) -> tuple[str, np.ndarray]:
    """How difficult puzzles are: the name of the measure, and ``[n]`` int64 values.

    For a 9 x 9 Sudoku, the number of guesses of a search with propagation (:func:`hrm.data.sudoku.solve`). For other
    tasks, the number of cells that the answer changes: the blanks of a small Sudoku, the path of a maze.

    Args:
        task: the task of the puzzles.
        inputs, labels: ``[n, seq_len]`` integers; -100 means no label.
    """
    if isinstance(task, Sudoku) and task.size == 9:
        return "guesses of a search", solve(inputs.astype(np.uint8)).ratings
    return "cells to change", ((labels != inputs) & (labels != IGNORE_LABEL)).sum(-1)

"""The results of an analysis."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hrm.analysis.answers import Answers
from hrm.analysis.baselines import Kind
from hrm.analysis.states import LEVELS, Level, participation_ratio
from hrm.data.task import PuzzleTask
from hrm.inference.solve import Solution
from hrm.inference.tables import html_table


@dataclass(frozen=True, repr=False)
class Trajectories:
    """The states of some puzzles, update by update, in the plane of their first two principal components.

    Attributes:
        points: ``[puzzles, updates, 2]``.
        variance: ``[2]``, the share of the variance along each component.
    """

    points: np.ndarray
    variance: np.ndarray

    def __repr__(self) -> str:
        puzzles, updates, _ = self.points.shape
        return f"Trajectories({puzzles} puzzles, {updates} updates, {self.variance.sum():.0%} of the variance)"


@dataclass(frozen=True, repr=False)
class BaselineRun:
    """A trained baseline.

    Attributes:
        residuals: ``[depth]`` forward residuals, by update.
        loss: token loss at the end of training.
        exact_accuracy: share of the analysed puzzles that it solves.
    """

    residuals: np.ndarray
    loss: float
    exact_accuracy: float

    def __repr__(self) -> str:
        return f"BaselineRun({len(self.residuals)} updates, loss {self.loss:.3f}, {self.exact_accuracy:.1%} solved)"


@dataclass(frozen=True, repr=False)
class Analysis:
    """The result of :func:`hrm.analysis.analyze`. :func:`hrm.analysis.write_report` writes it as a page.

    Attributes:
        task: the task of the puzzles.
        model: the values of the model's configuration.
        parameters: number of the model's parameters.
        answers: the answers of ``n`` puzzles after each segment.
        difficulty_name, difficulty: the measure of difficulty, and ``[n]`` values of it.
        residuals: by level, the numbers of its updates (from 1; updates of both levels count), and the residuals.
        updates_per_segment: updates of both levels in a segment.
        spectra: by ``(trained, level)``, ``[D]`` eigenvalues of the states' covariance.
        puzzles: number of puzzles whose states were measured, from the start of the split.
        shown: indices of the puzzles whose trajectories and boards are shown.
        trajectories: by level.
        baselines: by kind; empty if no baseline was trained.
        baseline_steps: training steps of each baseline.
    """

    task: PuzzleTask
    model: dict[str, Any]
    parameters: int
    answers: Answers
    difficulty_name: str
    difficulty: np.ndarray
    residuals: dict[Level, tuple[np.ndarray, np.ndarray]]
    updates_per_segment: int
    spectra: dict[tuple[bool, Level], np.ndarray]
    puzzles: int
    shown: np.ndarray
    trajectories: dict[Level, Trajectories]
    baselines: dict[Kind, BaselineRun]
    baseline_steps: int

    def participation(self, trained: bool, level: Level) -> float:
        """The participation ratio of a level's states."""
        return participation_ratio(self.spectra[trained, level])

    def as_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        answers = self.answers
        return {
            "model": self.model,
            "parameters": self.parameters,
            "puzzles": len(answers.inputs),
            "exact_accuracy_by_segment": answers.right.mean(1).tolist(),
            "accuracy_by_segment": answers.tokens_right.mean(1).tolist(),
            "halting": {
                "exact_accuracy": float(answers.right_when_halting.mean()),
                "mean_segments": float(answers.halting_steps.mean()),
                "histogram": np.bincount(answers.halting_steps, minlength=answers.steps + 1)[1:].tolist(),
            },
            "difficulty": {"name": self.difficulty_name, "values": self.difficulty.tolist()},
            "participation_ratio": {
                f"{'trained' if trained else 'untrained'}_z_{level}": self.participation(trained, level)
                for trained, level in self.spectra
            },
            "states_of_puzzles": self.puzzles,
            "residuals": {
                f"z_{level}": {"update": updates.tolist(), "residual": values.tolist()}
                for level, (updates, values) in self.residuals.items()
            },
            "baselines": {
                kind: {"residual": run.residuals.tolist(), "loss": run.loss, "exact_accuracy": run.exact_accuracy}
                for kind, run in self.baselines.items()
            },
            "baseline_steps": self.baseline_steps,
        }

    def solutions(self) -> list[Solution]:
        """The solutions of the puzzles in ``shown``, each up to the segment where it halts."""
        inputs = self.answers.inputs.astype(np.uint8)
        traces = [(inputs[index], self.answers.trace(index)) for index in self.shown.tolist()]
        return [
            Solution(puzzle, trace, self.task.check(puzzle, trace[-1].tokens), self.task) for puzzle, trace in traces
        ]

    def summary(self) -> dict[str, str]:
        """The main results in words, by name."""
        answers = self.answers
        return {
            "puzzles": f"{len(answers.inputs):,}",
            f"solved after {answers.steps} segments": f"{answers.right[-1].mean():.2%}",
            "solved when halting by Q": f"{answers.right_when_halting.mean():.2%}",
            "mean segments until halting by Q": f"{answers.halting_steps.mean():.2f}",
            "participation ratio z_H / z_L": " / ".join(f"{self.participation(True, level):.1f}" for level in LEVELS),
        }

    def __repr__(self) -> str:
        return f"Analysis({self.task}, {', '.join(f'{name}: {value}' for name, value in self.summary().items())})"

    def _repr_html_(self) -> str:
        facts = {"task": repr(self.task)} | self.summary()
        return html_table(facts.items())

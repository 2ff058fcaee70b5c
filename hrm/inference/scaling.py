"""Accuracy against compute: more segments, or several rollouts per puzzle, without retraining."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrm.data.format import PuzzleDataset
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.files import write_json, written_beside
from hrm.inference.engine import Engine
from hrm.inference.examples import LabelledPuzzles
from hrm.inference.halting import Halting
from hrm.inference.rollouts import ranked, roll_out
from hrm.inference.segments import require_positive
from hrm.inference.tables import html_table, markdown_table
from hrm.model import HRM
from hrm.progress import Progress, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADER = ("rollouts", "segments", "exact accuracy", "one of the answers right", "segments per puzzle")


@dataclass(frozen=True)
class ScalingCell:
    """One combination and its result.

    Attributes:
        segments: most segments of a rollout.
        rollouts: attempts at a puzzle.
        exact_accuracy: share of puzzles whose first answer is all right, 0 to 1.
        any_right: share of puzzles where at least one rollout is right: what a perfect vote would reach, 0 to 1.
        compute: mean segments per puzzle, all rollouts together.
    """

    segments: int
    rollouts: int
    exact_accuracy: float
    any_right: float
    compute: float


@dataclass(frozen=True)
class Scaling:
    """Accuracy against compute.

    Attributes:
        cells: one for each combination, by rollouts and then by segments, ascending.
    """

    cells: tuple[ScalingCell, ...]

    def __str__(self) -> str:
        return self.markdown()

    def __iter__(self) -> Iterator[ScalingCell]:
        return iter(self.cells)

    def markdown(self) -> str:
        """The cells as a table."""
        return markdown_table(_HEADER, self._rows())

    def _repr_html_(self) -> str:
        return html_table(self._rows(), _HEADER)

    def as_dict(self, **about: Any) -> dict[str, Any]:
        """``about``, then the cells, as ``scaling.json`` stores them."""
        return about | {"cells": [asdict(cell) for cell in self.cells]}

    def save(self, folder: Path, **about: Any) -> None:
        """Write ``scaling.json`` (``about`` and the cells), ``scaling.md`` and ``scaling.png`` into ``folder``."""
        write_json(folder / "scaling.json", self.as_dict(**about))
        with written_beside(folder / "scaling.md") as part:
            part.write_text(self.markdown() + "\n")
        figure = self.figure()
        with written_beside(folder / "scaling.png") as part:
            figure.savefig(part, format="png", dpi=figure.dpi)

    def figure(self) -> "Figure":
        """A curve for each number of rollouts."""
        from hrm.inference.scaling_figure import CurvePoint, scaling_figure  # imports matplotlib

        return scaling_figure(
            {
                rollouts: [CurvePoint(cell.segments, cell.compute, cell.exact_accuracy) for cell in cells]
                for rollouts, cells in groupby(self.cells, key=lambda cell: cell.rollouts)
            }
        )

    def _rows(self) -> list[list[str]]:
        return [
            [
                str(cell.rollouts),
                str(cell.segments),
                f"{cell.exact_accuracy:.2%}",
                f"{cell.any_right:.2%}",
                f"{cell.compute:.1f}",
            ]
            for cell in self.cells
        ]


def scale(
    model: HRM,
    task: PuzzleTask,
    dataset: PuzzleDataset,
    *,
    segments: Sequence[int],
    rollouts: Sequence[int] = (1,),
    halt: str | Halting = "fixed",
    augment: bool = True,
    noise: float = 0.0,
    seed: int = 0,
    max_examples: int | None = None,
    slots: int = 64,
    progress: Progress = silent,
) -> Scaling:
    """Measure every combination of ``segments`` and ``rollouts`` in one pass with the most of both.

    The trace of a rollout has its answers after fewer segments, and the first rollouts of a puzzle are those of a run
    with fewer rollouts, so the cells are those of separate runs.

    Args:
        model: its mode is restored.
        task: its symmetries change the puzzles, and it verifies answers if it can.
        dataset: labelled puzzles.
        segments: the numbers of segments; each is the most for a rollout.
        rollouts: the numbers of attempts at each puzzle.
        halt: as for :class:`hrm.Engine`; a rollout that halts uses no more segments.
        augment, noise, seed: as for :func:`hrm.inference.rollouts.roll_out`.
        max_examples: look only at the first examples.
        slots: number of rollouts side by side.
        progress: called with the number of finished rollouts.

    Raises:
        InputError: data set, task and model don't fit, no puzzle has labels, or a number is invalid.
    """
    for name, values in (("segments", segments), ("rollouts", rollouts)):
        if len(values) == 0:
            raise InputError(f"{name} is empty, expected one number or more")
        for value in values:
            require_positive(**{name: value})
    require_positive(max_examples=max_examples, slots=slots)
    puzzles = LabelledPuzzles(model, dataset, max_examples)
    combinations = [(steps, tries) for tries in sorted(set(rollouts)) for steps in sorted(set(segments))]
    right, any_right, compute = (dict.fromkeys(combinations, 0) for _ in range(3))
    most = max(rollouts)
    total = puzzles.count * most
    # For each number of segments: the answers of the puzzle's rollouts so far, and the segments they took.
    answers: dict[int, list[tuple[np.ndarray, float]]] = {steps: [] for steps in segments}
    used = dict.fromkeys(segments, 0)
    progress("rollouts", 0, total)
    with Engine(model, min(slots, total), max(segments), halt=halt) as engine:
        finished = roll_out(engine, task, puzzles.puzzles, most, augment=augment, noise=noise, seed=seed, trace=True)
        for done, rollout in enumerate(finished, 1):
            trace = rollout.result.trace
            for steps in answers:
                frame = trace[min(steps, len(trace)) - 1]
                answers[steps].append((rollout.symmetry.undo(frame.tokens), frame.q_halt))
                used[steps] += frame.step
            for combination in combinations:
                steps, tries = combination
                if tries == rollout.number + 1:
                    candidates = ranked(task, np.asarray(puzzles.puzzles[rollout.puzzle].inputs), answers[steps])
                    are_right = [puzzles.is_right(rollout.puzzle, candidate.tokens) for candidate in candidates]
                    right[combination] += are_right[0]
                    any_right[combination] += any(are_right)
                    compute[combination] += used[steps]
            if rollout.number == most - 1:  # the puzzle's last one
                answers, used = {steps: [] for steps in segments}, dict.fromkeys(segments, 0)
            progress("rollouts", done, total)
    count = puzzles.count
    return Scaling(
        tuple(
            ScalingCell(*one, right[one] / count, any_right[one] / count, compute[one] / count) for one in combinations
        )
    )

"""Accuracy against compute: more segments, or several trajectories per puzzle, without retraining."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrm.data.format import PuzzleDataset
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.files import write_json, written_beside
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.engine import Engine, Frame, Result, Trajectories
from hrm.inference.examples import LabelledPuzzles
from hrm.inference.halting import Halting
from hrm.inference.segments import require_positive
from hrm.inference.selection import WINDOW, Candidate, choices, mean_residual, rules_for
from hrm.inference.tables import html_table, markdown_table
from hrm.model import HRM
from hrm.progress import Progress, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ScalingCell:
    """One combination of segments and trajectories, and its result.

    Attributes:
        segments: most segments of a trajectory.
        trajectories: attempts at a puzzle.
        exact_accuracy: for each rule that chooses among the answers, the share of puzzles whose chosen answer is all
            right, 0 to 1.
        any_right: share of puzzles where at least one trajectory is right: what a perfect choice would reach, 0 to 1.
        compute: mean segments per puzzle, all trajectories together.
    """

    segments: int
    trajectories: int
    exact_accuracy: dict[str, float]
    any_right: float
    compute: float


@dataclass(frozen=True)
class Scaling:
    """Accuracy against compute.

    Attributes:
        cells: one for each combination, by trajectories and then by segments, ascending.
    """

    cells: tuple[ScalingCell, ...]

    def __str__(self) -> str:
        return self.markdown()

    def __iter__(self) -> Iterator[ScalingCell]:
        return iter(self.cells)

    def markdown(self) -> str:
        """The cells as a table."""
        return markdown_table(self._header, self._rows())

    def _repr_html_(self) -> str:
        return html_table(self._rows(), self._header)

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

    @property
    def rules(self) -> list[str]:
        """The rules of selection."""
        return list(self.cells[0].exact_accuracy)

    def figure(self) -> "Figure":
        """A panel for each rule, with a curve for each number of trajectories."""
        from hrm.inference.scaling_figure import CurvePoint, scaling_figure  # imports matplotlib

        curves = {count: list(cells) for count, cells in groupby(self.cells, key=lambda cell: cell.trajectories)}
        rules = self.rules if max(curves) > 1 else self.rules[-1:]  # of one answer all rules choose the same
        panels = {
            rule: {
                count: [CurvePoint(one.segments, one.compute, one.exact_accuracy[rule], one.any_right) for one in cells]
                for count, cells in curves.items()
            }
            for rule in rules
        }
        return scaling_figure(panels)

    @property
    def _header(self) -> list[str]:
        return ["trajectories", "segments", *(f"by {rule}" for rule in self.rules), "any right", "segments per puzzle"]

    def _rows(self) -> list[list[str]]:
        return [
            [
                str(cell.trajectories),
                str(cell.segments),
                *(f"{share:.2%}" for share in cell.exact_accuracy.values()),
                f"{cell.any_right:.2%}",
                f"{cell.compute:.1f}",
            ]
            for cell in self.cells
        ]


def described(how: Trajectories) -> dict[str, Any]:
    """How the trajectories differ and are chosen, as ``scaling.json`` stores it."""
    return {name: getattr(how, name) for name in ("noise", "start_noise", "augment", "select", "seed")}


def scale(
    model: HRM,
    task: PuzzleTask,
    dataset: PuzzleDataset,
    *,
    segments: Sequence[int],
    trajectories: Sequence[int] = (1,),
    how: Trajectories,
    halt: str | Halting = "fixed",
    damping: str | AdaptiveDamping | None = None,
    max_examples: int | None = None,
    slots: int = 64,
    progress: Progress = silent,
) -> Scaling:
    """Measure every combination of ``segments`` and ``trajectories`` in one pass with the most of both.

    The trace of a trajectory has its answers after fewer segments, and the first trajectories of a puzzle are those of
    a run with fewer trajectories, so the cells are those of separate runs.

    Args:
        model: its mode is restored.
        task: its symmetries change the puzzles, and it verifies answers if it can.
        dataset: labelled puzzles.
        segments: the numbers of segments; each is the most for a trajectory.
        trajectories: the numbers of attempts at each puzzle.
        how: how they differ, and which answer is chosen; its ``count`` and ``stop`` are ignored.
        halt, damping: as for :class:`hrm.Engine`; a trajectory that halts uses no more segments.
        max_examples: look only at the first examples.
        slots: number of trajectories side by side.
        progress: called with the number of finished puzzles.

    Raises:
        InputError: data set, task and model don't fit, no puzzle has labels, or a number is invalid.
    """
    for name, values in (("segments", segments), ("trajectories", trajectories)):
        if len(values) == 0:
            raise InputError(f"{name} is empty, expected one number or more")
        for value in values:
            require_positive(**{name: value})
    require_positive(max_examples=max_examples, slots=slots)
    puzzles = LabelledPuzzles(model, dataset, max_examples)
    how = replace(how, count=max(trajectories), stop=False)
    rules = list(dict.fromkeys([*rules_for(task), how.select]))
    tallies = {
        (steps, count): Tally(steps, count, dict.fromkeys(rules, 0))
        for count in sorted(set(trajectories))
        for steps in sorted(set(segments))
    }
    numbered = [puzzle._replace(seed=index) for index, puzzle in enumerate(puzzles.puzzles)]
    slots = min(slots, puzzles.count * how.count)
    progress("trajectories", 0, puzzles.count)
    with Engine(model, slots, max(segments), halt=halt, task=task, trajectories=how, damping=damping) as engine:
        for done, result in enumerate(engine.solve(numbered, trace=True), 1):
            if result.error is not None:
                raise result.error
            attempts = Attempts(task, numbered[result.index].inputs, result)
            for tally in tallies.values():
                tally.add(attempts, how.order, lambda tokens: puzzles.is_right(result.index, tokens))
            progress("trajectories", done, puzzles.count)
    return Scaling(tuple(tally.cell(puzzles.count) for tally in tallies.values()))


class Attempts:
    """The trajectories of one puzzle, as they were after any number of segments.

    Args:
        task: verifies answers, each once.
        inputs: ``[seq_len]``, the puzzle.
        result: with traces.
    """

    def __init__(self, task: PuzzleTask, inputs: np.ndarray, result: Result) -> None:
        self._task, self._inputs = task, inputs
        # a puzzle that is its own answer has no trace
        alone = result.trace or (Frame(0, result.tokens, result.q_halt, result.q_continue),)
        self._traces = [one.trace for one in result.trajectories] or [alone]
        self._verified: dict[bytes, bool | None] = {}

    def traces(self, segments: int, count: int) -> list[tuple[Frame, ...]]:
        """The first ``count`` trajectories up to ``segments`` segments."""
        traces = (self._traces * count)[:count] if len(self._traces) == 1 else self._traces[:count]
        return [trace[:segments] for trace in traces]

    def candidate(self, trace: Sequence[Frame]) -> Candidate:
        """The last answer of a trajectory, to choose from."""
        last, residual = trace[-1], mean_residual([frame.residual for frame in trace[-WINDOW:]])
        return Candidate(last.tokens, last.q_halt, residual, self._is_verified(last.tokens))

    def _is_verified(self, tokens: np.ndarray) -> bool | None:
        if not self._task.verifies:
            return None
        key = tokens.tobytes()
        if key not in self._verified:
            self._verified[key] = self._task.check(self._inputs, tokens) is None
        return self._verified[key]


@dataclass
class Tally:
    """Counts for one :class:`ScalingCell`."""

    segments: int
    count: int
    right: dict[str, int]
    any_right: int = 0
    compute: int = 0

    def add(self, attempts: Attempts, order: Sequence[str], is_right: Callable[[np.ndarray], bool]) -> None:
        """Count a puzzle."""
        traces = attempts.traces(self.segments, self.count)
        candidates = [attempts.candidate(trace) for trace in traces]
        right = [is_right(one.tokens) for one in candidates]
        chosen = choices(order, candidates)
        for rule in self.right:
            self.right[rule] += right[chosen[rule]]
        self.any_right += any(right)
        self.compute += sum(trace[-1].step for trace in traces)

    def cell(self, puzzles: int) -> ScalingCell:
        """The shares of ``puzzles``."""
        accuracy = {rule: right / puzzles for rule, right in self.right.items()}
        return ScalingCell(self.segments, self.count, accuracy, self.any_right / puzzles, self.compute / puzzles)

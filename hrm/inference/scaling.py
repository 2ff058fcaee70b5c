"""Accuracy against compute, by segments and rollouts, without retraining."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrm.data.format import PuzzleDataset
from hrm.data.task import PuzzleTask
from hrm.files import write_json, written_beside
from hrm.inference.engine import Engine
from hrm.inference.examples import LabelledPuzzles
from hrm.inference.halting import Halting
from hrm.inference.rollouts import ranked, roll_out
from hrm.inference.segments import require_positive
from hrm.model import HRM
from hrm.progress import Progress, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One setting and what it comes to.

    Attributes:
        segments: the most for a rollout.
        rollouts: for a puzzle.
        exact_accuracy: puzzles whose first answer is all right.
        any_right: puzzles where one of the rollouts is right: what a perfect vote would reach.
        compute: mean segments a puzzle, all rollouts together.
    """

    segments: int
    rollouts: int
    exact_accuracy: float
    any_right: float
    compute: float


def measure(
    model: HRM,
    task: PuzzleTask,
    dataset: PuzzleDataset,
    *,
    segments: list[int],
    rollouts: list[int],
    halt: str | Halting = "fixed",
    augment: bool = True,
    noise: float = 0.0,
    seed: int = 0,
    max_examples: int | None = None,
    slots: int = 64,
    progress: Progress = silent,
) -> list[Cell]:
    """Every combination of ``segments`` and ``rollouts``, from one pass with the most of both.

    After fewer segments a rollout stands where it stood then, and the first rollouts of a puzzle are those of a run
    with fewer, so the cells are what separate runs would give.

    Args:
        model: its mode is restored.
        task: its symmetries change the puzzles, and it verifies answers where it can.
        dataset: labelled puzzles.
        halt: as for :class:`hrm.Engine`; a rollout that halts uses no more segments.
        augment, noise, seed: as for :func:`hrm.inference.rollouts.roll_out`.
        max_examples: only this many puzzles, from the start.
        slots: rollouts side by side.
        progress: told how many rollouts are done.

    Raises:
        InputError: data set, task and model don't fit, no puzzle has labels, or a number is impossible.
    """
    for name, values in (("segments", segments), ("rollouts", rollouts)):
        for value in values:
            require_positive(**{name: value})
    require_positive(max_examples=max_examples, slots=slots)
    puzzles = LabelledPuzzles(model, dataset, max_examples)
    settings = [(steps, tries) for tries in sorted(set(rollouts)) for steps in sorted(set(segments))]
    right, any_right, compute = (dict.fromkeys(settings, 0) for _ in range(3))
    most = max(rollouts)
    slots = min(slots, puzzles.count * most)
    # For each number of segments: the answers of the puzzle's rollouts so far, and the segments they took.
    answers: dict[int, list[tuple[np.ndarray, float]]] = {steps: [] for steps in segments}
    used = dict.fromkeys(segments, 0)
    total = puzzles.count * most
    progress("rollouts", 0, total)
    with Engine(model, slots, max(segments), halt=halt) as engine:
        tried = roll_out(engine, task, puzzles.puzzles, most, augment=augment, noise=noise, seed=seed, trace=True)
        for done, one in enumerate(tried, 1):
            trace = one.result.trace
            for steps in answers:
                frame = trace[min(steps, len(trace)) - 1]
                answers[steps].append((one.symmetry.undo(frame.tokens), frame.q_halt))
                used[steps] += frame.step
            for setting in settings:
                steps, tries = setting
                if tries == one.number + 1:
                    candidates = ranked(task, np.asarray(puzzles.puzzles[one.puzzle].inputs), answers[steps])
                    hits = [puzzles.is_right(one.puzzle, candidate.tokens) for candidate in candidates]
                    right[setting] += hits[0]
                    any_right[setting] += any(hits)
                    compute[setting] += used[steps]
            if one.number == most - 1:
                answers, used = {steps: [] for steps in segments}, dict.fromkeys(segments, 0)
            progress("rollouts", done, total)
    count = puzzles.count
    return [Cell(*one, right[one] / count, any_right[one] / count, compute[one] / count) for one in settings]


def markdown(cells: list[Cell]) -> str:
    """The cells as a table."""
    lines = [
        "| rollouts | segments | exact accuracy | one of the answers right | segments a puzzle |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join(
        lines
        + [
            f"| {one.rollouts} | {one.segments} | {one.exact_accuracy:.2%} | {one.any_right:.2%} | {one.compute:.1f} |"
            for one in cells
        ]
    )


def save(cells: list[Cell], folder: Path, **about: Any) -> None:
    """Write ``scaling.json`` (``about`` and the cells), ``scaling.md`` and ``scaling.png`` into ``folder``."""
    write_json(folder / "scaling.json", about | {"cells": [asdict(one) for one in cells]})
    with written_beside(folder / "scaling.md") as part:
        part.write_text(markdown(cells) + "\n")
    with written_beside(folder / "scaling.png") as part:
        _draw(cells, part)


def _draw(cells: list[Cell], file: Path) -> None:
    _figure(cells).savefig(file, format="png", dpi=_DPI)


_DPI = 120
_MARKER = 6  # points


def _figure(cells: list[Cell]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="segments a puzzle, all rollouts together", ylabel="exact accuracy, %")
    axes.set_title("numbers at the points: the most segments of a rollout", fontsize=9)
    axes.margins(x=0.08, y=0.15)
    axes.grid(alpha=0.3)
    curves = []
    for tries in sorted({one.rollouts for one in cells}):
        own = [one for one in cells if one.rollouts == tries]
        name = "1 rollout" if tries == 1 else f"{tries} rollouts"
        points = np.array([(one.compute, 100 * one.exact_accuracy) for one in own])
        (line,) = axes.plot(*points.T, "o-", label=name, markersize=_MARKER)
        curves.append((points, [one.segments for one in own], line.get_color()))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.draw_without_rendering()  # lays it out: where a point is in pixels is known from here on
    _label(axes, curves)
    return figure


def _label(axes: "Axes", curves: list[tuple[np.ndarray, list[int], Any]]) -> None:
    """Write the segments at the points; those of points that touch as one label, and no label over another."""
    from matplotlib.transforms import Bbox

    radius = _MARKER * _DPI / 72 / 2
    pixels = [axes.transData.transform(points) for points, *_ in curves]
    taken = [Bbox.from_extents(*(at - radius), *(at + radius)) for own in pixels for at in own]
    for own, (points, segments, colour) in zip(pixels, curves):
        first = 0
        for last in range(len(own)):
            if last + 1 < len(own) and np.abs(own[last + 1] - own[first]).max() < 2 * radius:
                continue
            text = str(segments[first]) if first == last else f"{segments[first]} to {segments[last]}"
            middle = (first + last) // 2
            for x, y, horizontal, vertical in _PLACES:
                label = axes.annotate(
                    text,
                    tuple(points[middle]),
                    xytext=(x, y),
                    textcoords="offset points",
                    ha=horizontal,
                    va=vertical,
                    fontsize=8,
                    color=colour,
                    annotation_clip=False,
                )
                box = label.get_window_extent().padded(2)
                if not any(box.overlaps(other) for other in taken):
                    taken.append(box)
                    break
                label.remove()  # (where there is no room at all, the table has the number)
            first = last + 1


_PLACES = [
    (x * far, y * far, horizontal, vertical)
    for far in (1, 2, 3)
    for x, y, horizontal, vertical in (
        (0, 5, "center", "bottom"),
        (0, -5, "center", "top"),
        (6, 0, "left", "center"),
        (-6, 0, "right", "center"),
        (5, 4, "left", "bottom"),
        (-5, 4, "right", "bottom"),
        (5, -4, "left", "top"),
        (-5, -4, "right", "top"),
    )
]
"""Where a label may stand, in points from its point: the first that is free is taken."""

"""How sure a model has to be before it may halt: a threshold on q_halt - q_continue, found on held-out puzzles."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hrm.data.format import PuzzleDataset
from hrm.errors import InputError
from hrm.files import read_json, write_json, written_beside
from hrm.inference.engine import Engine
from hrm.inference.examples import LabelledPuzzles
from hrm.inference.halting import Halting, Margin, parse_halting
from hrm.inference.segments import require_positive
from hrm.locate import locate
from hrm.model import HRM
from hrm.progress import Progress, silent

FILE = "halting.json"
_THRESHOLDS = 200  # candidates, evenly spread over the margins that occur


@dataclass(frozen=True)
class Point:
    """What halting by one threshold comes to.

    Attributes:
        threshold: a puzzle halts where q_halt - q_continue exceeds it.
        exact_accuracy: the part of the puzzles answered all right.
        mean_steps: segments a puzzle.
    """

    threshold: float
    exact_accuracy: float
    mean_steps: float


@dataclass(frozen=True)
class Calibration:
    """Accuracy against mean steps, and the threshold chosen.

    Attributes:
        points: one for each threshold, ascending.
        chosen: the one with the fewest mean steps among those that lose no more accuracy than wanted.
        by_q: halting where q_halt > q_continue, for comparison.
        fixed: all segments, the measure of what is lost; its threshold is infinite.
        loss: the loss of exact accuracy that was allowed.
        max_steps: the most segments.
        count: labelled puzzles.
    """

    points: tuple[Point, ...]
    chosen: Point
    by_q: Point
    fixed: Point
    loss: float
    max_steps: int
    count: int

    def markdown(self) -> str:
        """A table of the points where accuracy or steps change visibly, and of the three rules."""

        def row(name: str, point: Point) -> str:
            threshold = "-" if math.isinf(point.threshold) else f"{point.threshold:.4g}"
            return f"| {name} | {threshold} | {point.exact_accuracy:.2%} | {point.mean_steps:.3f} |"

        lines = [
            f"{self.count} puzzles, at most {self.max_steps} segments, allowed loss {self.loss:.2%}.",
            "",
            "| rule | q_halt - q_continue above | exact accuracy | segments |",
            "| --- | --- | --- | --- |",
            row("fixed", self.fixed),
            row("q", self.by_q),
            row("calibrated", self.chosen),
        ]
        spread = self.points[:: max(1, len(self.points) // 20)]
        return "\n".join(lines + [row("", point) for point in spread]) + "\n"

    def save(self, folder: Path, source: str) -> None:
        """Write ``halting.json`` (:func:`calibrated` reads it), ``halting.md`` and ``halting.png`` into ``folder``."""
        values: dict[str, Any] = {"threshold": self.chosen.threshold, "measured_on": source}
        values |= {name: getattr(self, name) for name in ("loss", "max_steps", "count")}
        values |= {name: asdict(getattr(self, name)) for name in ("chosen", "by_q")}
        values["fixed"] = {name: value for name, value in asdict(self.fixed).items() if name != "threshold"}
        with written_beside(folder / "halting.md") as part:
            part.write_text(self.markdown())
        with written_beside(folder / "halting.png") as part:
            self._draw(part)
        write_json(folder / FILE, values)  # the last one: with it the threshold is in force

    def _draw(self, file: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        steps, accuracy = zip(*((one.mean_steps, 100 * one.exact_accuracy) for one in self.points))
        axes.plot(steps, accuracy, color="#1f5fd0", label="by threshold")
        for point, name, marker in (
            (self.fixed, "fixed", "s"),
            (self.by_q, "q_halt > q_continue", "o"),
            (self.chosen, f"calibrated (> {self.chosen.threshold:.3g})", "*"),
        ):
            axes.plot(point.mean_steps, 100 * point.exact_accuracy, marker, markersize=10, label=name)
        axes.set(xlabel="segments a puzzle", ylabel="exact accuracy, %", title=f"{self.count} puzzles")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, format="png", dpi=120)


def calibrate(
    model: HRM,
    dataset: PuzzleDataset,
    *,
    loss: float = 0.0,
    max_steps: int | None = None,
    max_examples: int | None = None,
    slots: int = 64,
    progress: Progress = silent,
) -> Calibration:
    """Find the threshold on q_halt - q_continue with the fewest mean segments for an allowed loss of exact accuracy.

    Every labelled puzzle runs through all segments once; from its answers and margins follow accuracy and steps for
    every threshold.

    Args:
        model: its mode is restored.
        dataset: held-out puzzles.
        loss: by how much exact accuracy may be below that of all segments, and of halting by Q, 0 to 1; with 0 it is
            not below them on these puzzles.
        max_steps: the most segments; None is the model's ``halt_max_steps``.
        max_examples: only this many puzzles, from the start.
        slots: puzzles side by side.
        progress: told how many puzzles are done.

    Raises:
        InputError: data set and model don't fit, no puzzle has labels, or a number is impossible.
    """
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    require_positive(max_steps=max_steps, max_examples=max_examples, slots=slots)
    if not 0 <= loss < 1:
        raise InputError(f"loss is {loss}, expected a part of the puzzles from 0 to below 1, such as 0.01")
    puzzles = LabelledPuzzles(model, dataset, max_examples)
    margins, right = np.zeros((max_steps, puzzles.count)), np.zeros((max_steps, puzzles.count), bool)
    progress("calibrating", 0, puzzles.count)
    with Engine(model, min(slots, puzzles.count), max_steps, halt="fixed") as engine:
        for done, result in enumerate(engine.solve(puzzles.puzzles, ordered=False, trace=True), 1):
            if result.error is not None:
                raise result.error
            margins[:, result.index] = [frame.q_halt - frame.q_continue for frame in result.trace]
            right[:, result.index] = [puzzles.is_right(result.index, frame.tokens) for frame in result.trace]
            progress("calibrating", done, puzzles.count)
    return choose(margins, right, loss)


def choose(margins: np.ndarray, right: np.ndarray, loss: float = 0.0) -> Calibration:
    """The calibration for ``[max_steps, n]`` margins (q_halt - q_continue) and whether the answers then were right."""
    max_steps, count = margins.shape

    def point(threshold: float) -> Point:
        halts = margins > threshold
        halts[-1] = True
        steps = halts.argmax(0)
        return Point(threshold, float(right[steps, np.arange(count)].mean()), float(steps.mean()) + 1)

    # Between two margins that occur all thresholds do the same; below the least every puzzle halts at once.
    occurring = np.unique(margins[:-1])
    spread, least = [], 0.0
    if occurring.size:
        quantiles = np.quantile(occurring, np.linspace(0, 1, _THRESHOLDS), method="nearest")
        spread, least = np.unique(quantiles).tolist(), float(occurring[0]) - 1
    points = tuple(point(threshold) for threshold in [least, *spread])
    fixed = Point(math.inf, float(right[-1].mean()), float(max_steps))
    by_q = point(0.0)
    # Counted in puzzles, so that 0.1 + 0.2 does not decide. A model may lose answers by going on: then Q is ahead.
    wanted = max(fixed.exact_accuracy, by_q.exact_accuracy) * count - loss * count - 1e-6
    # The highest margin that occurs halts nothing before the end, so there is always one.
    good = [one for one in (*points, by_q) if one.exact_accuracy * count >= wanted]
    chosen = min(good, key=lambda one: (one.mean_steps, -one.exact_accuracy, one.threshold))
    return Calibration(points, chosen, by_q, fixed, loss, max_steps, count)


def calibrated(checkpoint: Path | str) -> Margin:
    """The rule that ``hrm calibrate`` stored beside ``checkpoint``.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = folder_of(checkpoint) / FILE
    if not file.is_file():
        raise InputError(
            f"{checkpoint} has not been calibrated ({file} is missing); run hrm calibrate {checkpoint} --data DIR, "
            "or choose another way of halting"
        )
    values = read_json(file)
    threshold = values.get("threshold") if isinstance(values, dict) else None
    if not isinstance(threshold, int | float) or math.isnan(threshold):
        raise InputError(f"{file} holds no threshold; run hrm calibrate {checkpoint} again")
    return Margin(float(threshold))


def halting_of(checkpoint: Path | str, halt: str) -> Halting:
    """The rule that ``halt`` names: ``calibrated``, or one of :func:`hrm.inference.halting.parse_halting`."""
    return calibrated(checkpoint) if halt == "calibrated" else parse_halting(halt)


def folder_of(checkpoint: Path | str) -> Path:
    """The folder beside whose weights ``halting.json`` lies."""
    path = locate(checkpoint)
    return path if path.is_dir() or not path.exists() else path.parent

"""Calibrated halting: the threshold that saves most segments on held-out puzzles.

It is one on q_halt - q_continue (the rule ``margin``), or on the residual of the states, alone (``residual``) or beside
halting by Q (``q|residual``).
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hrm.data.format import PuzzleDataset
from hrm.errors import InputError
from hrm.files import write_json, written_beside
from hrm.inference.engine import Engine
from hrm.inference.examples import LabelledPuzzles
from hrm.inference.halting import CALIBRATION_FILE, FixedPoint, halts_at_the_end
from hrm.inference.segments import require_positive
from hrm.inference.tables import html_table, markdown_table
from hrm.model import HRM
from hrm.progress import Progress, silent

_THRESHOLDS = 200  # candidates, evenly spread over the margins that occur
RULES = ("margin", "residual", "q|residual")
"""The rules that have a threshold."""


@dataclass(frozen=True)
class Point:
    """Accuracy and compute with one threshold.

    Attributes:
        threshold: a puzzle halts where q_halt - q_continue exceeds it, or where the residual is below it.
        exact_accuracy: share of puzzles whose answer is all right, 0 to 1.
        mean_steps: segments per puzzle.
    """

    threshold: float
    exact_accuracy: float
    mean_steps: float


@dataclass(frozen=True, repr=False)
class Calibration:
    """Accuracy against mean segments, and the chosen threshold.

    Attributes:
        points: one for each threshold, ascending.
        chosen: the point with the fewest segments among those within the allowed loss.
        by_q: halting where q_halt > q_continue, for comparison.
        fixed: all segments; its threshold is infinite.
        loss: allowed loss of exact accuracy, 0 to 1.
        max_steps: most segments.
        count: number of labelled puzzles.
        rule: which rule the threshold is for, of :data:`RULES`.
    """

    points: tuple[Point, ...]
    chosen: Point
    by_q: Point
    fixed: Point
    loss: float
    max_steps: int
    count: int
    rule: str = "margin"

    @property
    def halt(self) -> str:
        """The calibrated rule, as ``halt`` takes it."""
        return f"{self.rule}:{self.chosen.threshold!r}"

    def __repr__(self) -> str:
        return f"Calibration(chosen={self.chosen}, fixed={self.fixed}, count={self.count})"

    def __str__(self) -> str:
        return f"{self._conditions}\n\n{markdown_table(self._header, self._rules())}"

    def _repr_html_(self) -> str:
        return f"<p>{self._conditions}</p>{html_table(self._rules(), self._header)}"

    def markdown(self) -> str:
        """A table of the three rules, and of some twenty points."""
        points = [_row("", point) for point in self.points[:: max(1, len(self.points) // 20)]]
        return f"{self._conditions}\n\n{markdown_table(self._header, self._rules() + points)}\n"

    @property
    def _header(self) -> tuple[str, ...]:
        return "rule", f"{_SIGNALS[self.rule]}", "exact accuracy", "segments"

    @property
    def _conditions(self) -> str:
        return f"{self.count} puzzles, at most {self.max_steps} segments, allowed loss {self.loss:.2%}."

    def _rules(self) -> list[tuple[str, ...]]:
        by_q = self.by_q if self.rule == "margin" else replace(self.by_q, threshold=math.inf)
        return [_row("fixed", self.fixed), _row("q", by_q), _row("calibrated", self.chosen)]

    def save(self, folder: Path, source: str) -> None:
        """Write ``halting.json``, ``halting.md`` and ``halting.png`` into ``folder``.

        Args:
            folder: the checkpoint's folder makes the threshold available as ``halt="calibrated"``.
            source: the puzzles, for ``measured_on`` in the file.
        """
        values: dict[str, Any] = {"rule": self.rule, "threshold": self.chosen.threshold, "measured_on": source}
        values |= {name: getattr(self, name) for name in ("loss", "max_steps", "count")}
        values |= {name: asdict(getattr(self, name)) for name in ("chosen", "by_q")}
        values["fixed"] = {name: value for name, value in asdict(self.fixed).items() if name != "threshold"}
        with written_beside(folder / "halting.md") as part:
            part.write_text(self.markdown())
        with written_beside(folder / "halting.png") as part:
            self._draw(part)
        write_json(folder / CALIBRATION_FILE, values)  # last: with this file the threshold takes effect

    def _draw(self, file: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        steps, accuracy = zip(*((point.mean_steps, 100 * point.exact_accuracy) for point in self.points))
        axes.plot(steps, accuracy, color="#1f5fd0", label="each threshold")
        for point, name, marker in (
            (self.fixed, "fixed", "s"),
            (self.by_q, "q_halt > q_continue", "o"),
            (self.chosen, f"calibrated ({_SIGNALS[self.rule]} {self.chosen.threshold:.3g})", "*"),
        ):
            axes.plot(point.mean_steps, 100 * point.exact_accuracy, marker, markersize=10, label=name)
        axes.set(xlabel="segments per puzzle", ylabel="exact accuracy, %", title=f"{self.count} puzzles")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, format="png", dpi=120)


def _row(rule: str, point: Point) -> tuple[str, ...]:
    threshold = "-" if math.isinf(point.threshold) else f"{point.threshold:.4g}"
    return rule, threshold, f"{point.exact_accuracy:.2%}", f"{point.mean_steps:.3f}"


def calibrate(
    model: HRM,
    dataset: PuzzleDataset,
    *,
    rule: str = "margin",
    loss: float = 0.0,
    max_steps: int | None = None,
    max_examples: int | None = None,
    slots: int = 64,
    progress: Progress = silent,
) -> Calibration:
    """Find the threshold of a rule with the fewest segments for an allowed loss of exact accuracy.

    Every labelled puzzle runs through all segments once; its answers, margins and residuals give accuracy and segments
    for every threshold.

    Args:
        model: its mode is restored.
        dataset: held-out puzzles.
        rule: ``"margin"`` (q_halt - q_continue above the threshold), ``"residual"`` (two segments changed the states by
            less than the threshold), or ``"q|residual"`` (the same, or q_halt > q_continue).
        loss: exact accuracy that may be lost, 0 to 1, compared with all segments and with halting by Q; for
            ``"residual"`` with all segments, for ``"q|residual"`` with halting by Q. With 0 nothing is lost on these
            puzzles.
        max_steps: most segments; None is the model's ``halt_max_steps``.
        max_examples: look only at the first examples.
        slots: number of puzzles side by side.
        progress: called with the number of finished puzzles.

    Raises:
        InputError: data set and model don't fit, no puzzle has labels, or a number is invalid.
    """
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    require_positive(max_steps=max_steps, max_examples=max_examples, slots=slots)
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
    if not 0 <= loss < 1:
        raise InputError(f"loss is {loss}, expected a share of the puzzles from 0 to below 1, such as 0.01")
    puzzles = LabelledPuzzles(model, dataset, max_examples)
    shape = (max_steps, puzzles.count)
    margins, residuals, right = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    halt = halts_at_the_end if rule == "margin" else FixedPoint(0.0)  # no residual is below 0, but it is measured
    progress("calibrating", 0, puzzles.count)
    with Engine(model, min(slots, puzzles.count), max_steps, halt=halt) as engine:
        for done, result in enumerate(engine.solve(puzzles.puzzles, ordered=False, trace=True), 1):
            if result.error is not None:
                raise result.error
            margins[:, result.index] = [frame.q_halt - frame.q_continue for frame in result.trace]
            residuals[:, result.index] = [frame.residual for frame in result.trace]
            right[:, result.index] = [puzzles.is_right(result.index, frame.tokens) for frame in result.trace]
            progress("calibrating", done, puzzles.count)
    return choose(margins, right, loss, None if rule == "margin" else residuals, with_q=rule == "q|residual")


def choose(
    margins: np.ndarray,
    right: np.ndarray,
    loss: float = 0.0,
    residuals: np.ndarray | None = None,
    with_q: bool = False,
) -> Calibration:
    """The calibration of ``[max_steps, n]`` margins (q_halt - q_continue), and whether the answers are right.

    With ``residuals`` of the same shape the threshold is one on the larger one of two in a row; ``with_q`` puzzles also
    halt by Q.
    """
    max_steps, count = margins.shape

    def halting(halts: np.ndarray, threshold: float) -> Point:
        halts[-1] = True
        steps = halts.argmax(0)
        return Point(threshold, float(right[steps, np.arange(count)].mean()), float(steps.mean()) + 1)

    if residuals is not None:
        worst = np.maximum(residuals, np.append(np.full((1, count), np.inf), residuals[:-1], 0))
        signals = -worst  # as a margin, it grows when the states come to rest

        def point(threshold: float) -> Point:
            return halting((worst < -threshold) | (with_q & (margins > 0)), -threshold)
    else:
        signals = margins

        def point(threshold: float) -> Point:
            return halting(margins > threshold, threshold)

    # Thresholds between two neighbouring margins are equivalent; below the lowest margin every puzzle halts at once.
    occurring = np.unique(signals[:-1][np.isfinite(signals[:-1])])
    spread, lowest = [], 0.0
    if occurring.size:
        quantiles = np.quantile(occurring, np.linspace(0, 1, _THRESHOLDS), method="nearest")
        spread, lowest = np.unique(quantiles).tolist(), float(occurring[0]) - 1
    points = tuple(point(threshold) for threshold in [lowest, *spread])
    fixed = Point(math.inf, float(right[-1].mean()), float(max_steps))
    by_q = halting(margins > 0, 0.0)
    # Counted in puzzles, so that rounding does not decide. A model may lose answers in later segments: then Q is ahead.
    # A threshold on residuals can do what all segments do, beside Q what Q does, and not more.
    reached = max(fixed.exact_accuracy, by_q.exact_accuracy) if residuals is None else points[-1].exact_accuracy
    required = reached * count - loss * count - 1e-6
    # Never empty: above the highest signal that occurs no puzzle halts before the end, or by Q.
    candidates = points if residuals is not None else (*points, by_q)
    allowed = [point for point in candidates if point.exact_accuracy * count >= required]
    chosen = min(allowed, key=lambda point: (point.mean_steps, -point.exact_accuracy, point.threshold))
    rule = "margin" if residuals is None else "q|residual" if with_q else "residual"
    return Calibration(points, chosen, by_q, fixed, loss, max_steps, count, rule)


_SIGNALS = {
    "margin": "q_halt - q_continue above",
    "residual": "residual below",
    "q|residual": "residual below",
}
"""What each rule compares with its threshold."""

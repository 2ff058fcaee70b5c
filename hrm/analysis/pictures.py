"""The figures of an analysis."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from hrm.analysis.results import Analysis

NAMES = ("accuracy", "halting", "residuals", "participation", "trajectories")

_H, _L, _FAINT, _GOOD, _BAD = "#1f5fd0", "#e07a1f", "#7b8794", "#15803d", "#b42318"
_BINS = 12  # of difficulty, if it has many values


def draw(analysis: Analysis) -> dict[str, Figure]:
    """A figure for each of :data:`NAMES`."""
    drawings = (_accuracy, _halting, _residuals, _participation, _trajectories)
    return {name: drawing(analysis) for name, drawing in zip(NAMES, drawings, strict=True)}


def _figure(columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    axes = [figure.add_subplot(1, columns, index + 1) for index in range(columns)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _accuracy(analysis: Analysis) -> Figure:
    answers = analysis.answers
    segments = np.arange(1, answers.steps + 1)
    figure, (left, right) = _figure(2, (10, 3.8))
    left.plot(segments, 100 * answers.tokens_right.mean(1), "o-", color=_FAINT, label="tokens right")
    left.plot(segments, 100 * answers.right.mean(1), "o-", color=_H, label="puzzles solved")
    mean, exact = answers.halting_steps.mean(), 100 * answers.right_when_halting.mean()
    left.plot(mean, exact, "*", color=_L, markersize=15, label=f"halting by Q ({mean:.1f} segments)")
    left.set(xlabel="segments", ylabel="%", title="Answers")
    left.legend(loc="lower right")
    confidence = 100 / (1 + np.exp(-answers.q_halt.astype(np.float64)))
    for chosen, name, colour in (
        (answers.right, "answer right", _GOOD),
        (~answers.right, "answer wrong", _BAD),
    ):
        counts = chosen.sum(1)
        mean_confidence = np.where(counts, (confidence * chosen).sum(1) / np.maximum(counts, 1), np.nan)
        right.plot(segments, mean_confidence, "o-", color=colour, label=f"confidence, {name}")
    halted = [100 * (answers.halting_steps <= step).mean() for step in segments[:-1]]
    right.plot(segments[:-1], halted, "--", color=_FAINT, label="puzzles halted by Q")
    right.set(xlabel="segments", ylabel="%", title="Confidence", ylim=(-3, 103))
    right.legend(loc="best")
    return figure


def _halting(analysis: Analysis) -> Figure:
    answers, hard = analysis.answers, analysis.difficulty
    steps, good = answers.halting_steps, answers.right_when_halting
    segments = np.arange(1, answers.steps + 1)
    figure, (left, right) = _figure(2, (10, 3.8))
    bottom = np.zeros(answers.steps)
    for chosen, name, colour in ((good, "right", _GOOD), (~good, "wrong", _BAD)):
        counts = np.bincount(steps[chosen], minlength=answers.steps + 1)[1:]
        left.bar(segments, counts, bottom=bottom, color=colour, label=f"{name} ({chosen.sum():,})")
        bottom += counts
    left.set(xlabel="segments until halting by Q", ylabel="puzzles", title="Halting")
    left.legend()
    edges = _edges(hard)
    counts, _, _ = np.histogram2d(hard, steps, bins=[edges, np.arange(answers.steps + 1) + 0.5])
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = right.pcolormesh(
        edges, np.arange(answers.steps + 1) + 0.5, shown, cmap="Blues", norm=LogNorm(1, max(2, counts.max()))
    )
    figure.colorbar(mesh, ax=right, label="puzzles")
    where = np.clip(np.digitize(hard, edges) - 1, 0, len(edges) - 2)
    filled = np.unique(where)
    middles = (edges[:-1] + edges[1:]) / 2
    right.plot(middles[filled], [steps[where == one].mean() for one in filled], "o-", color=_L, label="mean")
    right.set(xlabel=analysis.difficulty_name, ylabel="segments", title="Against difficulty")
    right.legend(loc="upper left")
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins around integers: a bin per integer if there are few, else :data:`_BINS` equal ones."""
    low, high = int(values.min()), int(values.max())
    if high - low < 2 * _BINS:
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low - 0.5, high + 0.5, _BINS + 1)


def _residuals(analysis: Analysis) -> Figure:
    count = 1 + len(analysis.baselines)
    figure, axes = _figure(count, (6 + 3 * len(analysis.baselines), 3.8))
    first = axes[0]
    for level, colour in (("L", _L), ("H", _H)):
        updates, values = analysis.residuals[level]  # type: ignore[index]
        first.plot(updates, values, "o-", color=colour, markersize=3, linewidth=1, label=f"z_{level}")
    last = max(int(updates[-1]) for updates, _ in analysis.residuals.values())
    for start in range(0, last, 2 * analysis.updates_per_segment):
        first.axvspan(start + 0.5, start + analysis.updates_per_segment + 0.5, color="#000000", alpha=0.05, linewidth=0)
    first.set(xlabel="updates (shaded: every other segment)", ylabel="forward residual", title="This model")
    first.legend(loc="upper right")
    for axis, (kind, run) in zip(axes[1:], analysis.baselines.items()):
        name = "Plain recurrent network" if kind == "recurrent" else "Feed-forward stack"
        axis.plot(np.arange(1, len(run.residuals) + 1), run.residuals, "o-", color=_FAINT, markersize=3, linewidth=1)
        axis.set(xlabel="updates" if kind == "recurrent" else "layers", title=name)
    values = np.concatenate(
        [*(v for _, v in analysis.residuals.values()), *(r.residuals for r in analysis.baselines.values())]
    )
    positive = values[values > 0]
    for axis in axes:
        axis.set_yscale("log")
        if positive.size:
            axis.set_ylim(positive.min() / 1.3, positive.max() * 1.3)
    return figure


def _participation(analysis: Analysis) -> Figure:
    figure, (left, right) = _figure(2, (10, 3.8))
    bars = [(trained, level) for trained in (True, False) for level in ("H", "L")]
    for place, (trained, level) in zip((0, 1, 2.5, 3.5), bars):
        value = analysis.participation(trained, level)  # type: ignore[arg-type]
        colour = _H if level == "H" else _L
        left.bar(place, value, color=colour, alpha=1 if trained else 0.45)
        left.annotate(f"{value:.1f}", (place, value), ha="center", va="bottom")
    left.set_xticks([0, 1, 2.5, 3.5], ["z_H", "z_L", "z_H", "z_L"])
    left.set(ylabel="participation ratio", title="Trained (left), untrained (right)")
    left.margins(y=0.12)
    left.grid(False, axis="x")
    for trained, level in bars:
        eigenvalues = analysis.spectra[trained, level]  # type: ignore[index]
        right.plot(
            np.arange(1, len(eigenvalues) + 1),
            100 * eigenvalues / (eigenvalues.sum() or 1),
            color=_H if level == "H" else _L,
            linestyle="-" if trained else ":",
            label=f"z_{level}, {'trained' if trained else 'untrained'}",
        )
    right.set(xlabel="eigenvalue", ylabel="share of the variance, %", title="Spectrum of the states' covariance")
    right.set_yscale("log")
    right.legend()
    return figure


def _trajectories(analysis: Analysis) -> Figure:
    figure, axes = _figure(2, (10, 4.6))
    good = analysis.answers.right[-1, analysis.shown]
    colours = colormaps["tab10"](np.arange(len(analysis.shown)) % 10)
    for axis, (level, paths) in zip(axes, analysis.trajectories.items()):
        for number, (points, colour) in enumerate(zip(paths.points, colours)):
            axis.plot(*points.T, color=colour, linewidth=0.8, alpha=0.5)
            axis.scatter(
                points[:, 0], points[:, 1], color=colour, s=np.linspace(4, 14, len(points)), alpha=0.6, linewidth=0
            )
            axis.plot(*points[-1], "o" if good[number] else "X", color=colour, markersize=9, markeredgecolor="#000000")
        axis.plot(*paths.points[0, 0], "s", color="#000000", markersize=7)
        axis.set(
            xlabel=f"first component ({paths.variance[0]:.0%} of the variance)",
            ylabel=f"second component ({paths.variance[1]:.0%})",
            title=f"z_{level} (square: start, outlined: end)",
        )
    return figure

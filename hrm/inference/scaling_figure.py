"""The figure of accuracy against compute."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

_DPI = 120
_MARKER = 6  # points


class CurvePoint(NamedTuple):
    """One measurement.

    Attributes:
        segments: the most of a rollout: the label of the point.
        compute: segments per puzzle, all rollouts together.
        accuracy: exact accuracy, 0 to 1.
    """

    segments: int
    compute: float
    accuracy: float


def scaling_figure(curves: Mapping[int, Sequence[CurvePoint]]) -> Figure:
    """Accuracy against compute, one curve for each number of rollouts."""
    figure = Figure(figsize=(6.5, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="segments per puzzle, all rollouts together", ylabel="exact accuracy, %")
    axes.set_title("numbers at the points: most segments of a rollout", fontsize=9)
    axes.margins(x=0.08, y=0.15)
    axes.grid(alpha=0.3)
    drawn = []
    for rollouts, curve in sorted(curves.items()):
        name = "1 rollout" if rollouts == 1 else f"{rollouts} rollouts"
        points = np.array([(point.compute, 100 * point.accuracy) for point in curve])
        (line,) = axes.plot(*points.T, "o-", label=name, markersize=_MARKER)
        drawn.append((points, [point.segments for point in curve], line.get_color()))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.draw_without_rendering()  # sets the layout, so that the points have pixel positions
    _label(axes, drawn)
    return figure


def _label(axes: Axes, curves: list[tuple[np.ndarray, list[int], Any]]) -> None:
    """Label the points with their segments: points that touch share a label, and labels do not overlap."""
    radius = _MARKER * _DPI / 72 / 2
    pixels = [axes.transData.transform(points) for points, *_ in curves]
    taken = [Bbox.from_extents(*(at - radius), *(at + radius)) for curve in pixels for at in curve]
    for curve, (points, segments, colour) in zip(pixels, curves):
        first = 0
        for last in range(len(curve)):
            if last + 1 < len(curve) and np.abs(curve[last + 1] - curve[first]).max() < 2 * radius:
                continue
            text = str(segments[first]) if first == last else f"{segments[first]} to {segments[last]}"
            middle = (first + last) // 2
            for x, y, horizontal, vertical in _LABEL_OFFSETS:
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
                label.remove()  # if there is no free space at all, the table still has the number
            first = last + 1


_LABEL_OFFSETS = [
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
"""Positions of a label relative to its point, in points (1/72 inch), with its alignment: the first free one is used."""

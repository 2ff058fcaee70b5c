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
        segments: the most of a trajectory: the label of the point.
        compute: segments per puzzle, all trajectories together.
        accuracy: exact accuracy of the chosen answers, 0 to 1.
        ceiling: the same for a perfect choice.
    """

    segments: int
    compute: float
    accuracy: float
    ceiling: float


def scaling_figure(panels: Mapping[str, Mapping[int, Sequence[CurvePoint]]]) -> Figure:
    """Accuracy against compute: a panel for each rule of selection, a curve for each number of trajectories.

    Dotted lines are the ceilings: a perfect choice among the answers.
    """
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.5, 4.2) if columns == 1 else (10.5, 1 + 3.4 * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    drawn = []
    for axes, (rule, curves) in zip(every, panels.items()):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.margins(x=0.08, y=0.15)
        axes.grid(alpha=0.3)
        if len(panels) > 1:
            axes.set_title(f"chosen by {rule.replace(',', ', then ')}", fontsize=10)
        drawn.append(_draw(axes, curves))
    figure.supxlabel("segments per puzzle, all trajectories together", fontsize=10)
    figure.supylabel("exact accuracy, %", fontsize=10)
    figure.suptitle("numbers at the points: most segments of a trajectory", fontsize=9)
    handles, names = every[0].get_legend_handles_labels()
    if len(panels) < len(every):
        every[-1].legend(handles, names, loc="center", fontsize=10)
    else:
        figure.legend(handles, names, loc="outside right upper", fontsize=9)
    figure.draw_without_rendering()  # sets the layout, so that the points have pixel positions
    for axes, curves_of_panel in zip(every, drawn):
        _label(axes, curves_of_panel)
    return figure


def _draw(axes: Axes, curves: Mapping[int, Sequence[CurvePoint]]) -> list[tuple[np.ndarray, list[int], Any]]:
    """Draw the curves of a panel. Returns the points, segments and colour of each."""
    drawn = []
    for count, curve in sorted(curves.items()):
        name = "1 trajectory" if count == 1 else f"{count} trajectories"
        points = np.array([(point.compute, 100 * point.accuracy) for point in curve])
        (line,) = axes.plot(*points.T, "o-", label=name, markersize=_MARKER)
        if count > 1:
            ceilings = [100 * point.ceiling for point in curve]
            label = f"{count}: any of them right"
            axes.plot(points[:, 0], ceilings, ":", color=line.get_color(), alpha=0.8, label=label)
        drawn.append((points, [point.segments for point in curve], line.get_color()))
    return drawn


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

"""Draw how an HRM works: ``python docs/figures/architecture.py`` writes one SVG for light pages and one for dark ones.

The upper half is one segment: the fast module L, the slow module H, and the two updates that carry gradients. The
lower half is a real run: the shipped model ``sudoku4`` solves a puzzle, segment by segment, until it halts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import hrm
from hrm.inference.engine import Frame

FOLDER = Path(__file__).parent
PUZZLE = "....2.4.4...3.2."  # the model changes its answer twice and halts after three segments
WIDTH, HEIGHT = 1200, 790


@dataclass(frozen=True)
class Theme:
    """The colours that differ between a light and a dark page."""

    name: str
    text: str
    muted: str
    line: str
    panel: str
    fast: str
    slow: str
    good: str
    on_colour: str


LIGHT = Theme("architecture", "#1f2328", "#59636e", "#c8d1da", "#f6f8fa", "#c2620a", "#3d55cc", "#1a7f4b", "#ffffff")
DARK = Theme(
    "architecture-dark", "#e6edf3", "#9aa4ae", "#4a525c", "#161b22", "#f0a04b", "#8ea2ff", "#4ac285", "#0d1117"
)


def run() -> tuple[np.ndarray, tuple[Frame, ...]]:
    """The puzzle ``[16]`` and what the shipped model answers after each segment."""
    inputs = np.array([1 if digit == "." else int(digit) + 1 for digit in PUZZLE], np.uint8)
    with hrm.Engine(hrm.load("sudoku4", "cpu"), slots=1, halt="q") as engine:
        (result,) = engine.solve([inputs], trace=True)
    return inputs, result.trace


class Drawing:
    """Shapes in pixels of a WIDTH x HEIGHT page, y upwards, in the colours of a theme."""

    def __init__(self, theme: Theme) -> None:
        self.theme = theme
        self.figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float = 15, **style: Any) -> None:
        style = {"color": self.theme.text, "ha": "center", "va": "center", "linespacing": 1.35} | style
        self.axes.text(x, y, text, fontsize=size * 0.72, **style)

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, edge: str, radius: float = 9, **style: Any
    ):
        style = {"linewidth": 1.6} | style
        corner = f"round,pad=0,rounding_size={radius}"
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=corner, facecolor=fill, edgecolor=edge, **style)
        )

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0, **style: Any):
        style = {"linewidth": 1.6, "arrowstyle": "-|>,head_length=5,head_width=2.6", "shrinkA": 0, "shrinkB": 0} | style
        curve = f"arc3,rad={bend}"
        self.axes.add_patch(FancyArrowPatch(start, end, color=colour, connectionstyle=curve, **style))

    def line(self, xs: list[float], ys: list[float], colour: str, **style: Any) -> None:
        self.axes.plot(xs, ys, color=colour, **{"linewidth": 1.6, "solid_capstyle": "round"} | style)

    def save(self) -> None:
        self.figure.savefig(
            FOLDER / f"{self.theme.name}.svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
        plt.close(self.figure)


def draw_segment(drawing: Drawing) -> None:
    """The updates of one segment: two cycles, each of two fast updates and a slow one."""
    theme = drawing.theme
    drawing.box(14, 366, WIDTH - 28, 410, theme.panel, theme.line, radius=14, linewidth=1.2)
    drawing.text(40, 748, "One segment", 20, ha="left", weight="bold")
    drawing.text(178, 747, "two recurrent modules at two speeds", 16, ha="left", color=theme.muted)

    high, low, feed = 640, 520, 425
    width, height = 104, 62
    fast_x = [232, 382, 612, 762]
    slow_x = [492, 872]
    drawing.text(46, high + 12, "slow module H", 16, ha="left", weight="bold", color=theme.slow)
    drawing.text(46, high - 12, "one update per cycle", 14, ha="left", color=theme.muted)
    drawing.text(46, low + 12, "fast module L", 16, ha="left", weight="bold", color=theme.fast)
    drawing.text(46, low - 12, "several updates per cycle", 14, ha="left", color=theme.muted)
    drawing.text(46, feed + 1, "puzzle, embedded", 16, ha="left", weight="bold")

    # the input feeds every fast update
    drawing.box(232, feed - 15, 734, 30, "none", theme.muted, radius=7, linewidth=1.3)
    drawing.text(599, feed, "the same input is added in every fast update", 14, color=theme.muted)
    for x in fast_x:
        drawing.arrow((x + width / 2, feed + 15), (x + width / 2, low - height / 2), theme.muted, linewidth=1.2)

    for index, x in enumerate(fast_x):
        kept = index == len(fast_x) - 1
        drawing.box(x, low - height / 2, width, height, theme.fast if kept else "none", theme.fast)
        drawing.text(x + width / 2, low, "update\n$z_L$", 15, color=theme.on_colour if kept else theme.text)
    for index, x in enumerate(slow_x):
        kept = index == len(slow_x) - 1
        drawing.box(x, high - height / 2, width, height, theme.slow if kept else "none", theme.slow)
        drawing.text(x + width / 2, high, "update\n$z_H$", 15, color=theme.on_colour if kept else theme.text)

    # states along the rows
    start = 216
    drawing.arrow((start, low), (fast_x[0], low), theme.fast)
    for left, right in zip(fast_x, fast_x[1:]):
        drawing.arrow((left + width, low), (right, low), theme.fast)
    drawing.arrow((start, high), (slow_x[0], high), theme.slow)
    drawing.arrow((slow_x[0] + width, high), (slow_x[1], high), theme.slow)
    # z_H reaches both fast updates of its cycle, z_L the slow update at its end
    for x in fast_x:
        drawing.arrow(
            (x + width / 2, high), (x + width / 2, low + height / 2), theme.slow, linewidth=1.2, linestyle=(0, (4, 2.5))
        )
    for x, target in ((fast_x[1], slow_x[0]), (fast_x[3], slow_x[1])):
        drawing.arrow((x + width, low + 14), (target + width / 2, high - height / 2), theme.fast, bend=0.28)
    drawing.arrow((slow_x[1] + width, high), (1022, high), theme.slow)
    drawing.line([fast_x[3] + width, 1010], [low, low], theme.fast)
    drawing.arrow((1002, low), (1022, low), theme.fast)
    drawing.text(1032, high + 10, "answer, Q values", 15, ha="left")
    drawing.text(1032, high - 10, "read from this state", 14, ha="left", color=theme.muted)
    drawing.text(1032, low + 10, "both states", 15, ha="left")
    drawing.text(1032, low - 10, "go to the next segment", 14, ha="left", color=theme.muted)

    # cycles and gradients, above
    for left, right, name in ((222, 604, "cycle 1"), (604, 984, "cycle 2")):
        drawing.line([left + 6, left + 6, right - 6, right - 6], [696, 704, 704, 696], theme.line)
        drawing.text((left + right) / 2, 718, name, 14, color=theme.muted)
    drawing.box(750, 384, 18, 14, theme.fast, theme.fast, radius=3)
    drawing.box(772, 384, 18, 14, theme.slow, theme.slow, radius=3)
    drawing.text(800, 391, "gradients flow through the last update of each module only", 14, ha="left")
    drawing.box(496, 384, 18, 14, "none", theme.fast, radius=3)
    drawing.box(518, 384, 18, 14, "none", theme.slow, radius=3)
    drawing.text(546, 391, "computed without gradients", 14, ha="left", color=theme.muted)


def draw_board(
    drawing: Drawing, x: float, y: float, tokens: np.ndarray, inputs: np.ndarray, before: np.ndarray | None
) -> None:
    """A 4 x 4 board of 120 pixels; cells that differ from ``before`` are ringed."""
    theme, cell = drawing.theme, 30
    drawing.axes.add_patch(
        Rectangle((x, y), 4 * cell, 4 * cell, facecolor="none", edgecolor=theme.muted, linewidth=1.6)
    )
    for index in range(1, 4):
        weight = 1.6 if index == 2 else 0.6
        drawing.line([x + index * cell] * 2, [y, y + 4 * cell], theme.muted, linewidth=weight)
        drawing.line([x, x + 4 * cell], [y + index * cell] * 2, theme.muted, linewidth=weight)
    for index, token in enumerate(tokens):
        row, column = divmod(index, 4)
        left, bottom = x + column * cell, y + (3 - row) * cell
        clue = inputs[index] > 1
        if before is not None and token != before[index]:
            drawing.box(left + 3, bottom + 3, cell - 6, cell - 6, "none", theme.fast, radius=5, linewidth=1.8)
        if token > 1:
            style = {"color": theme.text, "weight": "bold"} if clue else {"color": theme.slow}
            drawing.text(left + cell / 2, bottom + cell / 2 - 1, str(token - 1), 16, **style)


def draw_run(drawing: Drawing, inputs: np.ndarray, frames: tuple[Frame, ...]) -> None:
    """The shipped model's run: a board and two Q values after each segment, until it halts."""
    theme = drawing.theme
    drawing.text(40, 330, "Segment after segment, until the model halts", 20, ha="left", weight="bold")
    size = f"{len(frames)} of at most 16 segments"
    drawing.text(WIDTH - 40, 329, f"a real run of the shipped model sudoku4, {size}", 14, ha="right", color=theme.muted)
    boards, y = [40, 340, 640, 940], 158
    draw_board(drawing, boards[0], y, inputs, inputs, None)
    drawing.text(boards[0] + 60, y + 138, "puzzle", 15)
    for row, line in enumerate(("each segment starts", "from the states of", "the one before")):
        drawing.text(boards[0], y - 24 - 22 * row, line, 14, ha="left", color=theme.muted)
    for index, (x, frame) in enumerate(zip(boards[1:], frames)):
        middle = x - 90
        drawing.box(middle - 52, y + 31, 104, 58, theme.panel, theme.line, radius=9)
        drawing.text(middle, y + 69, "segment", 14, color=theme.muted)
        drawing.text(middle, y + 49, str(index + 1), 17, weight="bold")
        drawing.arrow((x - 180 + 6, y + 60), (middle - 52, y + 60), theme.muted)
        drawing.arrow((middle + 52, y + 60), (x - 7, y + 60), theme.muted)
        draw_board(drawing, x, y, frame.tokens, inputs, frames[index - 1].tokens if index else None)
        drawing.text(x + 60, y + 138, f"answer after segment {index + 1}", 15)
        stops = frame.q_halt > frame.q_continue
        for row, (name, value, colour) in enumerate(
            (("halt", frame.confidence, theme.good), ("continue", frame.continue_value, theme.muted))
        ):
            level = y - 24 - 22 * row
            drawing.text(x - 8, level, name, 14, ha="right", color=colour if stops and not row else theme.muted)
            drawing.axes.add_patch(
                Rectangle((x, level - 6), 120, 12, facecolor="none", edgecolor=theme.line, linewidth=1)
            )
            drawing.axes.add_patch(
                Rectangle((x, level - 6), 120 * value, 12, facecolor=colour, alpha=0.85, linewidth=0)
            )
            drawing.text(x + 130, level, f"{value:.4f}", 14, ha="left", color=theme.text)
        verdict = "halt > continue: halt, this is the answer" if stops else "halt < continue: run another segment"
        style = {"color": theme.good, "weight": "bold"} if stops else {"color": theme.muted}
        drawing.text(x + 60, y - 74, verdict, 14, **style)
    note = (
        "Ringed cells changed in this segment. Two Q values estimate what it is worth to halt now and to continue; "
        "hard puzzles run more segments."
    )
    drawing.text(40, 34, note, 15, ha="left", color=theme.muted)


def main() -> None:
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "hrm",
            "font.family": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans", "sans-serif"],
            "mathtext.fontset": "custom",
            "mathtext.it": "sans:italic",
        }
    )
    inputs, frames = run()
    for theme in (LIGHT, DARK):
        drawing = Drawing(theme)
        draw_segment(drawing)
        draw_run(drawing, inputs, frames)
        drawing.save()


if __name__ == "__main__":
    main()

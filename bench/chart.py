"""Draw the chart of speed: ``python -m bench.chart`` writes ``docs/speed.svg`` and ``docs/speed-dark.svg``.

It compares the cpu backend, and torch.compile where it was measured, with eager PyTorch: segments and a training step
of the published 27M model, and puzzles solved per second. Every number comes from one committed run.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from bench.processes import ROOT  # noqa: E402
from bench.report.runs import Results, Row, machine_of, read  # noqa: E402
from bench.report.text import digits, seconds  # noqa: E402
from hrm.files import written_beside  # noqa: E402

RUN = ROOT / "bench" / "results" / "cpu-2026-11-27" / "bench.json"
FOLDER = ROOT / "docs"
CANDIDATES = ("eager", "compile", "cpu")
LABELS = {"eager": "eager PyTorch", "compile": "torch.compile", "cpu": "hrm_kernels (cpu)"}

WORKLOADS = {
    "segment 1 x 82": "one segment, batch 1",
    "segment 4 x 82": "one segment, batch 4",
    "segment 8 x 82": "one segment, batch 8",
    "training step 2 x 82": "training step, batch 2",
}
SOLVED = {"sudoku4": "4 x 4 Sudoku", "sudoku6": "6 x 6 Sudoku", "maze11": "11 x 11 mazes"}
VARIANTS = {"eager": "all segments, no engine", "compile": "all segments, no engine", "cpu": "all segments"}
"""All candidates run the same segments, plain PyTorch in a loop; halting early would speed up all of them."""


@dataclass(frozen=True)
class Theme:
    """Colours for a light or a dark page."""

    suffix: str
    page: str
    text: str
    muted: str
    grid: str
    bars: dict[str, str]


LIGHT = Theme(
    suffix="",
    page="#ffffff",
    text="#1f2328",
    muted="#59636e",
    grid="#d8dee4",
    bars={"eager": "#9aa4ae", "compile": "#c98a1b", "cpu": "#1f6fb2"},
)
DARK = Theme(
    suffix="-dark",
    page="#0d1117",
    text="#e6edf3",
    muted="#9aa4ae",
    grid="#30363d",
    bars={"eager": "#6e7681", "compile": "#d9a441", "cpu": "#58a6ff"},
)


@dataclass(frozen=True)
class Bar:
    """How many times as fast as eager a candidate is, and its time or rate in words."""

    candidate: str
    ratio: float
    shown: str


def groups(results: Results) -> Iterator[tuple[str, list[Bar]]]:
    """The bars of each workload that was measured."""
    for workload, label in WORKLOADS.items():
        rows = {row["candidate"]: row for row in results.rows if row["workload"] == workload}
        if bars := [_bar(name, rows[name], seconds(rows[name]["median"])) for name in CANDIDATES if name in rows]:
            yield label, bars
    for model, label in SOLVED.items():
        rows = {row["candidate"]: row for row in results.of("solve") if f" of {model}," in row["workload"]}
        measured = {name: rows[f"{name}, {way}"] for name, way in VARIANTS.items() if f"{name}, {way}" in rows}
        if bars := [_bar(name, row, f"{digits(row['puzzles'] / row['median'])}/s") for name, row in measured.items()]:
            yield f"solving {label}", bars


def _bar(candidate: str, row: Row, shown: str) -> Bar:
    return Bar(candidate, row["times_eager"], shown)


def caption(results: Results) -> str:
    """Device, versions, date and file."""
    head = results.heads[0]
    return (
        "Segments and training step: published 27M model, 82 positions. Solving: shipped models, all segments.\n"
        f"{machine_of(head)}; {head['dtype']}; torch {head['machine']['versions']['torch']}; {head['date'][:10]}; "
        f"{RUN.relative_to(ROOT)}"
    )


def description(results: Results) -> str:
    """The chart in words."""
    lines = [
        f"{label}: {', '.join(f'{LABELS[bar.candidate]} {bar.shown} ({bar.ratio:.2f} x)' for bar in bars)}"
        for label, bars in groups(results)
    ]
    return "\n".join([*lines, caption(results)])


def draw(results: Results, theme: Theme) -> Any:
    """The chart as a matplotlib figure."""
    rows = list(groups(results))
    height = 1.4 + 0.25 * sum(len(bars) + 0.7 for _, bars in rows)
    figure, axis = plt.subplots(figsize=(8.4, height), layout="constrained", facecolor=theme.page)
    axis.set_facecolor(theme.page)
    y, ticks, named = 0.0, [], set()
    for _, bars in rows:
        ticks.append(y + (len(bars) - 1) / 2)
        for bar in bars:
            label = None if bar.candidate in named else LABELS[bar.candidate]
            named.add(bar.candidate)
            axis.barh(y, bar.ratio, height=0.86, color=theme.bars[bar.candidate], label=label)
            text = bar.shown if bar.candidate == "eager" else f"{bar.ratio:.2f} x  ({bar.shown})"
            axis.text(bar.ratio + 0.02, y, text, va="center", fontsize=9, color=theme.text)
            y += 1
        y += 0.7
    axis.set_yticks(ticks, [label for label, _ in rows], fontsize=10, color=theme.text)
    axis.set_ylim(y - 1, -0.8)
    axis.set_xlim(0, 1.25 * max(bar.ratio for _, bars in rows for bar in bars))
    axis.set_xlabel("times as fast as eager PyTorch (longer is faster)", color=theme.muted)
    axis.tick_params(colors=theme.muted, length=0)
    axis.tick_params(axis="y", labelcolor=theme.text)
    axis.spines[:].set_visible(False)
    axis.grid(axis="x", color=theme.grid, linewidth=0.8)
    axis.set_axisbelow(True)
    figure.legend(frameon=False, fontsize=9.5, labelcolor=theme.text, loc="outside upper center", ncols=len(named))
    figure.supxlabel(caption(results), fontsize=8, color=theme.muted)
    return figure


def save(results: Results, folder: Path) -> list[Path]:
    """Write the chart for light and dark pages."""
    written = []
    for theme in (LIGHT, DARK):
        path = folder / f"speed{theme.suffix}.svg"
        with matplotlib.rc_context({"svg.hashsalt": "speed"}), written_beside(path) as part:
            figure = draw(results, theme)
            metadata = {"Date": None, "Creator": None, "Description": description(results)}
            figure.savefig(part, format="svg", metadata=metadata)
            plt.close(figure)
        written.append(path)
    return written


def main() -> int:
    for path in save(read(RUN), FOLDER):
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Draw the chart of speed: ``python -m bench.chart`` writes ``docs/speed.svg`` and ``docs/speed-dark.svg``.

It compares the cpu backend, and torch.compile where it was measured, with plain PyTorch: segments and training steps of
the published 27M model, and puzzles solved per second. Every number comes from a committed file: of the suites for the
machine with AVX2, of ``bench.cpu_goals`` for the machine with AMX. After ``python -m bench.cpu_goals --write
bench/results/NAME`` on a CPU with AMX, this command shows that run.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

from bench.processes import ROOT  # noqa: E402
from bench.report.runs import Results, Row, machine_of, read  # noqa: E402
from bench.report.text import digits, seconds  # noqa: E402
from hrm.files import written_beside  # noqa: E402

RESULTS = ROOT / "bench" / "results"
RUN = RESULTS / "cpu-2026-11-27" / "bench.json"
GOALS = "cpu_goals.json"
"""Files of ``python -m bench.cpu_goals --write``; the newest of a CPU with AMX is shown."""

FOLDER = ROOT / "docs"
CANDIDATES = ("eager", "compile", "cpu")
LABELS = {"eager": "plain PyTorch", "compile": "torch.compile", "cpu": "hrm_kernels (cpu)"}
OF_GOALS = {"eager": "PyTorch bfloat16", "cpu": "ours"}
"""The names of the candidates in files of ``bench.cpu_goals``."""

WORKLOADS = {
    "segment 1 x 82": "one segment, batch 1",
    "segment 8 x 82": "one segment, batch 8",
    "training step 2 x 82": "training step, batch 2",
}
SOLVED = {"sudoku4": "4 x 4 Sudoku", "sudoku6": "6 x 6 Sudoku", "maze11": "11 x 11 mazes"}
ON_AMX = {
    "segment 1 x 82": "one segment, batch 1",
    "segment 8 x 82": "one segment, batch 8",
    "segment 32 x 82": "one segment, batch 32",
    "training step 2 x 82": "training step, batch 2",
    "training step 8 x 82": "training step, batch 8",
}
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
    """How many times as fast as plain PyTorch a candidate is, and its time or rate in words."""

    candidate: str
    ratio: float
    shown: str


@dataclass(frozen=True)
class Panel:
    """The bars of one machine, by workload; ``is_old``: of an older version of this project."""

    title: str
    caption: str
    groups: list[tuple[str, list[Bar]]]
    is_old: bool = False


def panels(results: Results, amx: dict[str, Any] | None) -> list[Panel]:
    """The machine with AVX2, and that with AMX if there is a file of ``bench.cpu_goals`` for it."""
    head = results.heads[0]
    first = Panel(f"{machine_of(head)}, {head['dtype']}", caption(results), list(groups(results)))
    return [first] if amx is None else [first, amx_panel(amx)]


def newest_amx(folder: Path = RESULTS) -> dict[str, Any] | None:
    """The newest file of a CPU with AMX; one of an older version counts only if there is no other."""
    files = [json.loads(path.read_text()) | {"path": path} for path in folder.glob(f"*/{GOALS}")]
    with_amx = [one for one in files if "amx_bf16" in one["machine"]["cpu"]["isa"] and _amx_groups(one)]
    order = [(one["machine"].get("before") is None, one["machine"]["date"]) for one in with_amx]
    return with_amx[order.index(max(order))] if with_amx else None


def amx_panel(run: dict[str, Any]) -> Panel:
    """Bars of a file of ``bench.cpu_goals``."""
    machine = run["machine"]
    before, torch = machine.get("before"), machine["versions"]["torch"] or "not recorded"
    title = f"{machine['cpu']['model']}, {machine['threads']} threads, AMX, bfloat16"
    if before:
        title = f"{machine['cpu']['model']}, {machine['threads']} threads, bfloat16: old version, {before}"
    path = run["path"]
    name = path.parent.relative_to(ROOT) if path.is_relative_to(ROOT) else path.parent.name
    verb = "reported" if before else "measured"
    caption = f"{machine['cpu']['model']}; bfloat16; torch {torch}; {verb} {machine['date'][:10]}"
    if before:
        caption += ", not measured since"
    return Panel(title, f"{caption}; {name}", _amx_groups(run), bool(before))


def _amx_groups(run: dict[str, Any]) -> list[tuple[str, list[Bar]]]:
    """The workloads that were measured undisturbed in bfloat16."""
    rows_of = {one["workload"]: one["rows"] for one in run["samples"] if one["dtype"] == "bfloat16"}
    groups = []
    for workload, label in ON_AMX.items():
        rows = rows_of.get(workload, {})
        times = {name: rows[key]["times"] for name, key in OF_GOALS.items() if rows.get(key, {}).get("times")}
        if len(times) == len(OF_GOALS):
            bars = [
                Bar(
                    name,
                    statistics.median(other / one for other, one in zip(times["eager"], values)),
                    seconds(statistics.median(values)),
                )
                for name, values in times.items()
            ]
            groups.append((label, bars))
    return groups


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
        f"{machine_of(head)}; {head['dtype']}; torch {head['machine']['versions']['torch']}; {head['date'][:10]}; "
        f"{RUN.relative_to(ROOT)}"
    )


WHAT = "Segments and training steps: published 27M model, 82 positions. Solving: shipped models, all segments."


def description(shown: list[Panel]) -> str:
    """The chart in words."""
    lines = []
    for panel in shown:
        lines.append(panel.title)
        for label, bars in panel.groups:
            lines.append(f"{label}: {', '.join(f'{LABELS[bar.candidate]} {_text(bar)}' for bar in bars)}")
    return "\n".join([*lines, WHAT, *(panel.caption for panel in shown)])


def _text(bar: Bar) -> str:
    return f"{bar.ratio:.2f} x ({bar.shown})"


def draw(shown: list[Panel], theme: Theme) -> Any:
    """The chart as a matplotlib figure: one panel below the other, with the same scale."""
    lengths = [sum(len(bars) + 0.7 for _, bars in panel.groups) for panel in shown]
    figure, axes = plt.subplots(
        len(shown),
        squeeze=False,
        figsize=(8.4, 1.3 + 0.6 * len(shown) + 0.23 * sum(lengths)),
        gridspec_kw={"height_ratios": lengths},
        layout="constrained",
        facecolor=theme.page,
    )
    longest = max(bar.ratio for panel in shown for _, bars in panel.groups for bar in bars)
    for panel, axis in zip(shown, axes[:, 0]):
        _draw_panel(panel, axis, theme, 1.25 * longest)
    axes[-1, 0].set_xlabel("times as fast as plain PyTorch in the same dtype (longer is faster)", color=theme.muted)
    names = dict.fromkeys(bar.candidate for panel in shown for _, bars in panel.groups for bar in bars)
    handles = [Patch(color=theme.bars[name], label=LABELS[name]) for name in names]
    if any(panel.is_old for panel in shown):
        handles.append(Patch(fill=False, edgecolor=theme.bars["cpu"], hatch="////", label="the same, old version"))
    figure.legend(
        handles=handles, frameon=False, fontsize=9.5, labelcolor=theme.text, loc="outside upper center", ncols=4
    )
    captions = "\n".join([WHAT, *(panel.caption for panel in shown)])
    figure.supxlabel(captions, fontsize=7.5, color=theme.muted)
    return figure


def _draw_panel(panel: Panel, axis: Any, theme: Theme, width: float) -> None:
    axis.set_facecolor(theme.page)
    axis.set_title(panel.title, loc="left", fontsize=10, color=theme.text, fontweight="bold")
    y, ticks = 0.0, []
    for _, bars in panel.groups:
        ticks.append(y + (len(bars) - 1) / 2)
        for bar in bars:
            color = theme.bars[bar.candidate]
            old = {"fill": False, "edgecolor": color, "hatch": "////", "linewidth": 0.8}
            style = old if panel.is_old and bar.candidate == "cpu" else {"color": color}
            axis.barh(y, bar.ratio, height=0.86, **style)
            text = bar.shown if bar.candidate == "eager" else f"{bar.ratio:.2f} x  ({bar.shown})"
            axis.text(bar.ratio + 0.02, y, text, va="center", fontsize=9, color=theme.text)
            y += 1
        y += 0.7
    axis.set_yticks(ticks, [label for label, _ in panel.groups], fontsize=10, color=theme.text)
    axis.set_ylim(y - 1, -0.8)
    axis.set_xlim(0, width)
    axis.tick_params(colors=theme.muted, length=0)
    axis.tick_params(axis="y", labelcolor=theme.text)
    axis.spines[:].set_visible(False)
    axis.grid(axis="x", color=theme.grid, linewidth=0.8)
    axis.set_axisbelow(True)


def save(shown: list[Panel], folder: Path) -> list[Path]:
    """Write the chart for light and dark pages."""
    written = []
    for theme in (LIGHT, DARK):
        path = folder / f"speed{theme.suffix}.svg"
        with matplotlib.rc_context({"svg.hashsalt": "speed", "hatch.linewidth": 0.8}), written_beside(path) as part:
            figure = draw(shown, theme)
            metadata = {"Date": None, "Creator": None, "Description": description(shown)}
            figure.savefig(part, format="svg", metadata=metadata)
            plt.close(figure)
        written.append(path)
    return written


def main() -> int:
    for path in save(panels(read(RUN), newest_amx()), FOLDER):
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

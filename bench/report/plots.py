"""The pictures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: E402

from bench.report.runs import SUITES, Results, Row  # noqa: E402
from hrm.files import written_beside  # noqa: E402

COLOURS = {"eager": "#8a8a8a", "compile": "#c98a1b", "compile, max-autotune": "#8f5c00", "cpu": "#1f6fb2"}
COLOURS |= {"triton": "#3a8f4f", "cuda": "#6b3fa0", "automatic": "#b23a48"}
OPACITIES = {"all segments, no engine": 0.3, "all segments": 0.5, "halting": 0.75, "calibrated": 1.0}
"""Variants of one backend share its colour; the faster they are, the more opaque."""

RATIO_TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)


def plots(results: Results, folder: Path) -> list[Path]:
    """Draw the pictures that there are rows for; return their paths."""
    compared = [row for row in results.rows if row.get("times_eager")]
    counted = [row for row in results.rows if row.get("operations") and row.get("bytes")]
    figures = {
        # eager itself is the line at 1
        "ratios.png": (_ratios, [row for row in compared if row["candidate"] not in ("eager", "eager, all segments")]),
        "roofline.png": (lambda rows: _roofline(rows, results.heads[0]["ceilings"]), counted),
        "cost.png": (_cost, results.of("segment")),
        "memory.png": (_memory, results.of("memory")),
    }
    written = []
    for name, (draw, rows) in figures.items():
        if not rows:
            continue
        figure = draw(rows)
        with written_beside(folder / name) as part:
            figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
        plt.close(figure)
        written.append(folder / name)
    return written


def _colour(candidate: str) -> str:
    known = COLOURS.get(candidate) or COLOURS.get(candidate.partition(",")[0])
    return known or f"C{sum(candidate.encode()) % 10}"


def _opacity(candidate: str) -> float:
    return OPACITIES.get(candidate.partition(", ")[2], 1.0)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes[0]


def _ratios(rows: Sequence[Row]) -> Any:
    """How many times as fast as eager every candidate is."""
    names = list(dict.fromkeys(f"{row['suite']}: {row['workload']}" for row in rows))
    figure, (axis,) = _figure(9, 1 + 0.24 * (len(rows) + 0.6 * len(names)))
    y, places, labels, known = 0.0, [], [], set()
    for name in names:
        group = [row for row in rows if f"{row['suite']}: {row['workload']}" == name]
        places.append(y + (len(group) - 1) / 2)
        labels.append(name)
        for row in group:
            candidate, ratio = row["candidate"], row["times_eager"]
            label = None if candidate in known else candidate
            known.add(candidate)
            axis.barh(
                y, ratio - 1, left=1, height=0.9, color=_colour(candidate), alpha=_opacity(candidate), label=label
            )
            axis.text(
                ratio * (1.02 if ratio >= 1 else 0.98),
                y,
                f"{ratio:.2f}",
                va="center",
                fontsize=7,
                ha="left" if ratio >= 1 else "right",
            )
            y += 1
        y += 0.6
    axis.set_xscale("log", base=2)
    low = min(0.7, *(row["times_eager"] * 0.8 for row in rows))
    high = max(1.5, *(row["times_eager"] * 1.3 for row in rows))
    axis.set_xlim(low, high)
    ticks = [t for t in RATIO_TICKS if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.axvline(1, color="#444444", linewidth=1)
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_ylim(y, -1)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("times as fast as eager PyTorch (log scale)")
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=5)
    return figure


def _roofline(rows: Sequence[Row], ceilings: dict[str, float]) -> Any:
    """The rate of every workload against its operations per byte."""
    figure, (axis,) = _figure(9, 5.5)
    peak = ceilings.get("fma_flops_per_s", ceilings["matmul_flops_per_s"])
    intensities = [row["operations"] / row["bytes"] for row in rows]
    bends = [peak / ceilings[key] for key in ("copy_bytes_per_s", "cached_copy_bytes_per_s") if key in ceilings]
    low, high = min(*intensities, *bends) / 4, max(*intensities, *bends) * 2
    for key, style, label in (
        ("copy_bytes_per_s", "-", f"{peak / 1e9:.3g} GFLOP/s, memory"),
        ("cached_copy_bytes_per_s", ":", "the same, caches"),
    ):
        if key in ceilings:
            xs = [low, peak / ceilings[key], high]
            axis.plot(xs, [min(peak, x * ceilings[key]) / 1e9 for x in xs], style, color="#444444", label=label)
    markers = dict(zip(SUITES, "os^Dv"))
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        for suite in SUITES:
            group = [row for row in rows if (row["candidate"], row["suite"]) == (candidate, suite)]
            if group:
                axis.scatter(
                    [row["operations"] / row["bytes"] for row in group],
                    [row["operations"] / row["median"] / 1e9 for row in group],
                    marker=markers[suite],
                    s=34,
                    color=_colour(candidate),
                    alpha=0.8,
                    label=f"{candidate}: {suite}",
                    linewidths=0,
                )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations per byte that must move")
    axis.set_ylabel("GFLOP/s")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _cost(rows: Sequence[Row]) -> Any:
    """The time per position of a segment, against batch and against length."""
    figure, (by_batch, by_length) = _figure(11, 4.2, 2)
    shortest = min(row["positions"] for row in rows)
    per_position = max(row["median"] / (row["batch"] * row["positions"]) for row in rows)
    factor, unit = (1e3, "ms") if per_position > 1e-4 else (1e6, "µs")
    for axis, group, key, label in (
        (by_batch, [row for row in rows if row["positions"] == shortest], "batch", f"rows of {shortest} positions"),
        (by_length, [row for row in rows if row["batch"] == 1], "positions", "positions of one row"),
    ):
        for candidate in dict.fromkeys(row["candidate"] for row in group):
            line = sorted((row for row in group if row["candidate"] == candidate), key=lambda row: row[key])
            tokens = [row["batch"] * row["positions"] for row in line]
            cost = [factor * row["median"] / n for row, n in zip(line, tokens)]
            spread = [[factor * abs(row[q] - row["median"]) / n for row, n in zip(line, tokens)] for q in ("q1", "q3")]
            axis.errorbar(
                [row[key] for row in line],
                cost,
                spread,
                marker="o",
                markersize=4,
                capsize=2,
                color=_colour(candidate),
                label=candidate,
            )
        ticks = sorted({row[key] for row in group})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel(label)
        axis.set_ylabel(f"{unit} per position of a segment")
    by_batch.legend(frameon=False, fontsize=8)
    return figure


def _memory(rows: Sequence[Row]) -> Any:
    """The peak memory of a gradient against the number of cycles."""
    figure, (axis,) = _figure(7, 4.5)
    styles = {"one_step": "-", "full": "--", "recompute": ":"}
    for kind, candidate in dict.fromkeys((row["kind"], row["candidate"]) for row in rows):
        line = sorted(
            (row for row in rows if (row["kind"], row["candidate"]) == (kind, candidate)), key=lambda row: row["cycles"]
        )
        name = {"one_step": "one-step gradient", "full": "through all cycles", "recompute": "all, recomputed"}[kind]
        axis.plot(
            [row["cycles"] for row in line],
            [row["peak_bytes"] / 1e6 for row in line],
            styles[kind],
            marker="o",
            markersize=4,
            color=_colour(candidate),
            label=f"{name}, {candidate}",
        )
    axis.set_xticks(sorted({row["cycles"] for row in rows}))
    axis.set_ylim(bottom=0)
    axis.set_xlabel("cycles (2 L updates and 1 H update each)")
    axis.set_ylabel("peak memory of a gradient, MB")
    axis.legend(frameon=False, fontsize=8)
    return figure

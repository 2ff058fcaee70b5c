"""Tables and plots of a run: ``python -m bench.report bench/results/FOLDER [--write]``.

Reads the JSON files of pytest-benchmark in the folder, and writes ``tables.md`` and the pictures beside them:
``ratios.png`` (against eager), ``roofline.png``, ``cost.png`` (against batch and against sequence length),
``memory.png`` (against cycles). ``--write`` also puts the summary between the markers of ``bench/README.md`` and
``README.md``, where they have them. Every number comes from the files.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: E402

from hrm.files import written_beside  # noqa: E402

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench.report: begin -->", "<!-- bench.report: end -->"
SUITES = ("ops", "block", "segment", "train", "solve", "memory", "import")

Row = dict[str, Any]
"""A benchmark: its ``extra_info``, with ``median``, ``q1``, ``q3`` and ``rounds``."""

COLOURS = {"eager": "#8a8a8a", "compile": "#c98a1b", "compile, max-autotune": "#8f5c00", "cpu": "#1f6fb2"}
COLOURS |= {"triton": "#3a8f4f", "cuda": "#6b3fa0", "automatic": "#b23a48"}
WAYS = {"all segments, no engine": 0.3, "all segments": 0.5, "halting": 0.75, "calibrated": 1.0}


class ReportError(Exception):
    """What was given holds no measurements; the message says what to do."""


def read(folder: Path) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of all files in ``folder`` (or of one file), and the files' heads: device, versions, ceilings.

    Raises:
        ReportError: there is no file of this suite.
    """
    rows, heads = [], []
    for path in [folder] if folder.is_file() else sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or "bench" not in found:
            continue
        heads.append(
            found["bench"]
            | {"machine": found["machine_info"], "date": found["datetime"], "commit": found["commit_info"]}
        )
        for one in found["benchmarks"]:
            stats = {key: one["stats"][key] for key in ("median", "q1", "q3", "rounds")}
            rows.append(one["extra_info"] | stats | {"id": one["fullname"]})
    if not heads:
        raise ReportError(
            f"{folder} has no measurements; make some: "
            f"pytest bench/ --benchmark-only --benchmark-json={folder}/bench.json"
        )
    rows.sort(key=lambda row: SUITES.index(row["suite"]))  # (stable: within a suite as they were measured)
    return rows, heads


# Numbers


def seconds(value: float) -> str:
    """With three digits, in the unit that suits it."""
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
    return f"{_three(value * factor)} {unit}"


def _three(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}"


def size(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{_three(value)} {unit}"


# Tables


def table(rows: Sequence[Row], gpu: bool) -> list[str]:
    """Workloads and candidates of a suite that has bytes and operations."""
    puzzles, launches = any(row.get("puzzles") for row in rows), gpu and any(row.get("launches") for row in rows)
    head = ["", "", "time", "quarters", "x eager", "of the ceiling", "rate", "bytes"]
    head += (["launches"] if launches else []) + (["puzzles/s", "solved", "segments", "outside"] if puzzles else [])
    lines = [_line(head), _line(["---"] * len(head))]
    shown = ""
    for row in rows:
        time, rate, share = row["median"], "", ""
        if row["bound"]:
            rate = f"{row['bytes'] / time / 1e9:.3g} GB/s"
            if row["bound"] == "arithmetic":
                rate = f"{row['operations'] / time / 1e9:.3g} GFLOP/s"
            share = f"{row['of_ceiling']:.0%} ({row['bound']})"
        cells = [
            row["workload"] if row["workload"] != shown else "",
            row["candidate"],
            seconds(time),
            f"{seconds(row['q1'])}, {seconds(row['q3'])}" + ("; disturbed" if row.get("disturbed") else ""),
            f"{row['times_eager']:.2f}" if row["times_eager"] else "",
            share,
            rate,
            size(row["bytes"]) if row["bytes"] else "",
        ]
        cells += [str(row.get("launches") or "")] if launches else []
        if puzzles:
            outside = "" if row.get("outside") is None else f"{row['outside']:.1%}"
            cells += [_three(row["puzzles"] / time), f"{row['solved']:.1%}", f"{row['segments']:.2f}", outside]
        lines.append(_line(cells))
        shown = row["workload"]
    return lines


def memory_table(rows: Sequence[Row]) -> list[str]:
    cycles = sorted({row["cycles"] for row in rows})
    lines = [
        _line(["gradient", "", *(f"{n} cycles" for n in cycles)]),
        _line(["---"] * (2 + len(cycles))),
    ]
    for kind, candidate in dict.fromkeys((row["kind"], row["candidate"]) for row in rows):
        peaks = {
            row["cycles"]: row["peak_bytes"] for row in rows if (row["kind"], row["candidate"]) == (kind, candidate)
        }
        lines.append(
            _line([kind.replace("_", "-"), candidate, *(size(peaks[n]) if n in peaks else "" for n in cycles)])
        )
    return lines


def import_table(rows: Sequence[Row]) -> list[str]:
    lines = [_line(["", "time", "quarters"]), _line(["---"] * 3)]
    for row in rows:
        lines.append(_line([row["workload"], seconds(row["median"]), f"{seconds(row['q1'])}, {seconds(row['q3'])}"]))
    return lines


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def where(head: dict[str, Any]) -> str:
    """Device, versions, date, ceilings: one paragraph."""
    machine, ceilings = head["machine"], head["ceilings"]
    cpu, versions = machine["cpu"], machine["versions"]
    device = f"{cpu['model']}, {cpu['threads']} threads ({' '.join(cpu['isa'])})"
    if head["device"] == "cuda":
        device = ", ".join(gpu["name"] for gpu in machine["gpus"])
    text = f"{device}; {head['dtype']}; torch {versions['torch']}, Python {versions['python']}"
    text += f", triton {versions['triton']}" if head["device"] == "cuda" else ""
    text += (
        f"; {head['date'][:10]}, commit {head['commit']['id'][:9]}{' and changes' if head['commit']['dirty'] else ''}."
    )
    found = [f"matrix product {ceilings['matmul_flops_per_s'] / 1e9:.0f} GFLOP/s"]
    if "fma_flops_per_s" in ceilings:
        found.append(f"multiply-adds in registers {ceilings['fma_flops_per_s'] / 1e9:.0f} GFLOP/s")
    found.append(f"memory {ceilings['copy_bytes_per_s'] / 1e9:.1f} GB/s")
    if "cached_copy_bytes_per_s" in ceilings:
        found.append(f"caches {ceilings['cached_copy_bytes_per_s'] / 1e9:.1f} GB/s")
    return f"{text} Ceilings of this run: {', '.join(found)} (read plus written)."


def tables(
    rows: Sequence[Row], heads: Sequence[dict[str, Any]], suites: Sequence[str] = SUITES, level: str = "##"
) -> list[str]:
    """Where it was measured, and the tables of ``suites``: lines of Markdown."""
    lines = ["\n\n".join(where(head) for head in heads)]
    gpu = any(head["device"] == "cuda" for head in heads)
    for suite in suites:
        own = [row for row in rows if row["suite"] == suite]
        if own:
            make = {"memory": memory_table, "import": import_table}.get(suite, lambda found: table(found, gpu))
            lines += ["", f"{level} {suite}", "", *make(own)]
    return lines


def not_measured(heads: Sequence[dict[str, Any]]) -> list[str]:
    """Who could not run, and why: lines of Markdown."""
    missing: dict[tuple[str, str], list[str]] = {}
    for head in heads:
        for one in head["unmeasured"]:
            missing.setdefault((one["candidate"], one["reason"]), []).append(f"{one['suite']}: {one['workload']}")
    lines = [
        f"- {candidate} ({names[0] if len(names) == 1 else f'{len(names)} workloads'}): {reason}"
        for (candidate, reason), names in missing.items()
    ]
    return ["", "## not measured", "", *lines] if lines else []


def summary(rows: Sequence[Row], heads: Sequence[dict[str, Any]], folder: Path) -> str:
    """What a README shows: the tables of whole models, and where the others are."""
    name = folder.resolve().relative_to(ROOT) if folder.resolve().is_relative_to(ROOT) else folder
    lines = tables(rows, heads, ("segment", "train", "solve", "memory"), "###")
    return "\n".join([*lines, "", f"All tables: `{name}/tables.md`."])


# Plots


def plots(rows: Sequence[Row], heads: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw what there are rows for; returns the pictures' paths."""
    drawn = {
        "ratios.png": _ratios([row for row in rows if row.get("times_eager")]),
        "roofline.png": _roofline([row for row in rows if row.get("operations") and row.get("bytes")], heads[0]),
        "cost.png": _cost([row for row in rows if row["suite"] == "segment"]),
        "memory.png": _memory([row for row in rows if row["suite"] == "memory"]),
    }
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            with written_beside(folder / name) as part:
                figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
            plt.close(figure)
            written.append(folder / name)
    return written


def _colour(candidate: str) -> str:
    known = COLOURS.get(candidate) or COLOURS.get(candidate.partition(",")[0])
    return known or f"C{sum(candidate.encode()) % 10}"


def _alpha(candidate: str) -> float:
    """Ways of one backend have its colour, the quicker the fuller."""
    return WAYS.get(candidate.partition(", ")[2], 1.0)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes[0]


def _ratios(rows: Sequence[Row]) -> Any:
    # eager itself is the line at 1
    rows = [row for row in rows if row["candidate"] not in ("eager", "eager, all segments")]
    if not rows:
        return None
    names = list(dict.fromkeys(f"{row['suite']}: {row['workload']}" for row in rows))
    figure, (axis,) = _figure(9, 1 + 0.24 * (len(rows) + 0.6 * len(names)))
    y, places, labels, known = 0.0, [], [], set()
    for name in names:
        own = [row for row in rows if f"{row['suite']}: {row['workload']}" == name]
        places.append(y + (len(own) - 1) / 2)
        labels.append(name)
        for row in own:
            candidate, ratio = row["candidate"], row["times_eager"]
            label = None if candidate in known else candidate
            known.add(candidate)
            axis.barh(y, ratio - 1, left=1, height=0.9, color=_colour(candidate), alpha=_alpha(candidate), label=label)
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
    low, high = (f(row["times_eager"] for row in rows) for f in (min, max))
    axis.set_xlim(min(0.7, low * 0.8), max(1.5, high * 1.3))
    ticks = [t for t in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if min(0.7, low * 0.8) <= t <= max(1.5, high * 1.3)]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.axvline(1, color="#444444", linewidth=1)
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_ylim(y, -1)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("times as fast as eager PyTorch (log scale)")
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=5)
    return figure


def _roofline(rows: Sequence[Row], head: dict[str, Any]) -> Any:
    if not rows:
        return None
    figure, (axis,) = _figure(9, 5.5)
    ceilings = head["ceilings"]
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
            own = [row for row in rows if (row["candidate"], row["suite"]) == (candidate, suite)]
            if own:
                axis.scatter(
                    [row["operations"] / row["bytes"] for row in own],
                    [row["operations"] / row["median"] / 1e9 for row in own],
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
    if not rows:
        return None
    figure, (by_batch, by_length) = _figure(11, 4.2, 2)
    shortest = min(row["positions"] for row in rows)
    per_position = max(row["median"] / (row["batch"] * row["positions"]) for row in rows)
    factor, unit = (1e3, "ms") if per_position > 1e-4 else (1e6, "µs")
    for axis, own, key, label in (
        (by_batch, [row for row in rows if row["positions"] == shortest], "batch", f"rows of {shortest} positions"),
        (by_length, [row for row in rows if row["batch"] == 1], "positions", "positions of one row"),
    ):
        for candidate in dict.fromkeys(row["candidate"] for row in own):
            line = sorted((row for row in own if row["candidate"] == candidate), key=lambda row: row[key])
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
        ticks = sorted({row[key] for row in own})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel(label)
        axis.set_ylabel(f"{unit} per position of a segment")
    by_batch.legend(frameon=False, fontsize=8)
    return figure


def _memory(rows: Sequence[Row]) -> Any:
    if not rows:
        return None
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


# READMEs


def fill(path: Path, text: str) -> bool:
    """Put ``text`` between the markers of a Markdown file. Returns whether it has them."""
    old = path.read_text()
    if BEGIN not in old:
        return False
    head, rest = old.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    with written_beside(path) as part:
        part.write_text(f"{head}{BEGIN}\n{text.rstrip()}\n{END}{tail}")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run's JSON files, such as bench/results/cpu-2026-11-27")
    parser.add_argument("--write", action="store_true", help="fill the marked sections of the READMEs too")
    options = parser.parse_args(arguments)
    try:
        rows, heads = read(options.folder)
    except (ReportError, OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    folder = options.folder if options.folder.is_dir() else options.folder.parent
    pictures = plots(rows, heads, folder)
    with written_beside(folder / "tables.md") as part:
        lines = [f"# {folder.resolve().name}", "", *tables(rows, heads), *not_measured(heads)]
        part.write_text("\n".join(lines) + "\n")
    print(f"wrote {folder / 'tables.md'} and {', '.join(path.name for path in pictures)}")
    if options.write:
        for readme in (ROOT / "bench" / "README.md", ROOT / "README.md"):
            shown = [f"![{p.stem}]({os.path.relpath(p.resolve(), readme.parent)})" for p in pictures]
            if fill(readme, summary(rows, heads, folder) + "\n\n" + "\n\n".join(shown)):
                print(f"filled {readme.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

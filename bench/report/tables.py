"""The tables of a run, in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.processes import ROOT
from bench.report.runs import SUITES, Results, Row, machine_of
from bench.report.text import digits, header, line, seconds, size


def tables(results: Results, suites: Sequence[str] = SUITES, level: str = "##") -> list[str]:
    """Where it was measured, and the tables of ``suites``."""
    lines = ["\n\n".join(conditions(head) for head in results.heads)]
    make = {"memory": memory_table, "import": import_table}
    for suite in suites:
        if rows := results.of(suite):
            table = make[suite](rows) if suite in make else speed_table(rows, results.has_gpu)
            lines += ["", f"{level} {suite}", "", *table]
    return lines


def summary(results: Results, folder: Path) -> str:
    """What the site shows: the tables of whole models, and where the others are."""
    name = folder.resolve().relative_to(ROOT) if folder.resolve().is_relative_to(ROOT) else folder
    lines = tables(results, ("segment", "train", "solve", "memory"), "###")
    return "\n".join([*lines, "", f"All tables: `{name}/tables.md`."])


def conditions(head: dict[str, Any]) -> str:
    """Device, versions, date and ceilings: one paragraph."""
    versions, ceilings, commit = head["machine"]["versions"], head["ceilings"], head["commit"]
    facts = [machine_of(head), head["dtype"], f"torch {versions['torch']}, Python {versions['python']}"]
    if head["device"] == "cuda":
        facts[-1] += f", triton {versions['triton']}"
    facts.append(f"{head['date'][:10]}, commit {commit['id'][:9]}{' and changes' if commit['dirty'] else ''}")
    limits = [f"matrix product {ceilings['matmul_flops_per_s'] / 1e9:.0f} GFLOP/s"]
    if "fma_flops_per_s" in ceilings:
        limits.append(f"multiply-adds in registers {ceilings['fma_flops_per_s'] / 1e9:.0f} GFLOP/s")
    if "amx_bfloat16_registers_flops_per_s" in ceilings:
        tiles = [ceilings[f"amx_bfloat16_{where}_flops_per_s"] / 1e9 for where in ("registers", "cached")]
        limits.append("bfloat16 tiles {:.0f} GFLOP/s in registers, {:.0f} from the caches".format(*tiles))
    limits.append(f"memory {ceilings['copy_bytes_per_s'] / 1e9:.1f} GB/s")
    if "cached_copy_bytes_per_s" in ceilings:
        limits.append(f"caches {ceilings['cached_copy_bytes_per_s'] / 1e9:.1f} GB/s")
    return f"{'; '.join(facts)}. Ceilings of this run: {', '.join(limits)} (read plus written)."


def speed_table(rows: Sequence[Row], gpu: bool) -> list[str]:
    """Workloads and candidates of a suite that has bytes and operations."""
    has_launches = gpu and any(row.get("launches") for row in rows)
    has_puzzles = any(row.get("puzzles") for row in rows)
    has_outside = any(row.get("outside") is not None for row in rows)
    head = ["", "", "time", "quarters", "x eager", "of the ceiling", "rate", "bytes"]
    head += ["launches"] if has_launches else []
    head += ["puzzles/s", "solved", "segments"] if has_puzzles else []
    head += ["outside"] if has_outside else []
    lines = header(head)
    previous = ""
    for row in rows:
        cells = ["" if row["workload"] == previous else row["workload"], row["candidate"], *_times(row), *_limits(row)]
        cells += [str(row.get("launches") or "")] if has_launches else []
        cells += _solved(row) if has_puzzles else []
        cells += ["" if row.get("outside") is None else f"{row['outside']:.1%}"] if has_outside else []
        lines.append(line(cells))
        previous = row["workload"]
    return lines


def _times(row: Row) -> list[str]:
    """Time, quarters, ratio to eager."""
    quarters = _quarters(row) + ("; disturbed" if row.get("disturbed") else "")
    return [seconds(row["median"]), quarters, f"{row['times_eager']:.2f}" if row["times_eager"] else ""]


def _quarters(row: Row) -> str:
    return f"{seconds(row['q1'])}, {seconds(row['q3'])}"


def _limits(row: Row) -> list[str]:
    """Share of the ceiling, rate, bytes."""
    moved = size(row["bytes"]) if row["bytes"] else ""
    if not row["bound"]:
        return ["", "", moved]
    what, unit = ("operations", "GFLOP/s") if row["bound"] == "arithmetic" else ("bytes", "GB/s")
    return [f"{row['of_ceiling']:.0%} ({row['bound']})", f"{row[what] / row['median'] / 1e9:.3g} {unit}", moved]


def _solved(row: Row) -> list[str]:
    """Puzzles per second, share solved, segments."""
    return [digits(row["puzzles"] / row["median"]), f"{row['solved']:.1%}", f"{row['segments']:.2f}"]


def memory_table(rows: Sequence[Row]) -> list[str]:
    cycles = sorted({row["cycles"] for row in rows})
    lines = header(["gradient", "", *(f"{n} cycles" for n in cycles)])
    for kind, candidate in dict.fromkeys((row["kind"], row["candidate"]) for row in rows):
        same = [row for row in rows if (row["kind"], row["candidate"]) == (kind, candidate)]
        peaks = {row["cycles"]: size(row["peak_bytes"]) for row in same}
        lines.append(line([kind.replace("_", "-"), candidate, *(peaks.get(n, "") for n in cycles)]))
    return lines


def import_table(rows: Sequence[Row]) -> list[str]:
    cells = ([row["workload"], seconds(row["median"]), _quarters(row)] for row in rows)
    return [*header(["", "time", "quarters"]), *map(line, cells)]


def not_measured(results: Results) -> list[str]:
    """Candidates that could not run, and why."""
    missing: dict[tuple[str, str], list[str]] = {}
    for head in results.heads:
        for one in head["unmeasured"]:
            missing.setdefault((one["candidate"], one["reason"]), []).append(f"{one['suite']}: {one['workload']}")
    lines = [
        f"- {candidate} ({names[0] if len(names) == 1 else f'{len(names)} workloads'}): {reason}"
        for (candidate, reason), names in missing.items()
    ]
    return ["", "## not measured", "", *lines] if lines else []

"""The table of verdicts as text, Markdown and JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cpu_goals import machine
from bench.cpu_goals.goals import NOT_HERE, Verdict
from bench.cpu_goals.run import Result
from bench.report.text import header, line
from hrm.files import written_beside

HEAD = ("what", "goal", "measured: median (quarters)", "turns", "result")


def _cells(one: Verdict) -> list[str]:
    turns = (str(one.turns) if one.turns else "") + (f", {one.disturbed} disturbed" if one.disturbed else "")
    result = f"{one.status}: {one.reason}" if one.reason else one.status
    return [one.what, one.expected, one.measured, turns.removeprefix(", "), result]


def _judged(verdicts: Sequence[Verdict]) -> list[list[str]]:
    return [_cells(one) for one in verdicts if one.status != NOT_HERE]


def _not_here(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each reason why goals do not apply."""
    goals: dict[str | None, list[str]] = {}
    for one in verdicts:
        if one.status == NOT_HERE:
            goals.setdefault(one.reason, []).append(f"{one.what} {one.expected}")
    return [f"does not apply, {reason}: {'; '.join(names)}" for reason, names in goals.items()]


def as_text(verdicts: Sequence[Verdict]) -> str:
    """A plain table of the goals that apply, and why the others do not."""
    rows = [list(HEAD), *_judged(verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_not_here(verdicts)])


def as_markdown(described: dict[str, Any], parts: Sequence[str], result: Result) -> str:
    lines = ["# Goals for CPUs", "", machine.title(described), ""]
    lines += [f"`python -m bench.cpu_goals --only {' '.join(parts)}`: {result.seconds:.0f} s, "]
    lines[-1] += f"{result.disturbed} turns disturbed by other work."
    lines += ["", *header(list(HEAD)), *map(line, _judged(result.verdicts))]
    lines += [part for one in _not_here(result.verdicts) for part in ("", one)]
    if result.details:
        lines += ["", "## Every op", "", *header(list(HEAD)), *map(line, _judged(result.details))]
    return "\n".join([*lines, ""])


def write(folder: Path, described: dict[str, Any], parts: Sequence[str], result: Result) -> list[Path]:
    """Write ``cpu_goals.json`` and ``cpu_goals.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": described,
        "parts": list(parts),
        "seconds": result.seconds,
        "disturbed": result.disturbed,
        "verdicts": [one.as_json() for one in result.verdicts],
        "details": [one.as_json() for one in result.details],
        "samples": result.samples,
    }
    texts = {
        "cpu_goals.json": json.dumps(content, indent=1) + "\n",
        "cpu_goals.md": as_markdown(described, parts, result),
    }
    written = []
    for name, text in texts.items():
        with written_beside(folder / name) as part:
            part.write_text(text)
        written.append(folder / name)
    return written

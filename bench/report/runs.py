"""The measurements of a run, from the JSON files of pytest-benchmark."""

import json
from pathlib import Path
from typing import Any, NamedTuple

SUITES = ("ops", "block", "segment", "train", "solve", "memory", "import")

Row = dict[str, Any]
"""A benchmark: its ``extra_info``, with ``median``, ``q1``, ``q3``, ``rounds`` and ``id``."""


class ReportError(Exception):
    """There is nothing to report; the message says what to do."""


class Results(NamedTuple):
    """Rows of all files of a run, and the head of each file: device, versions, ceilings, what was not measured."""

    rows: list[Row]
    heads: list[dict[str, Any]]

    @property
    def has_gpu(self) -> bool:
        return any(head["device"] == "cuda" for head in self.heads)

    def of(self, *suites: str) -> list[Row]:
        """The rows of these suites."""
        return [row for row in self.rows if row["suite"] in suites]


def read(path: Path) -> Results:
    """Read a folder's files, or one file.

    Raises:
        ReportError: there is no file of this suite.
    """
    rows, heads = [], []
    for file in [path] if path.is_file() else sorted(path.glob("*.json")):
        content = json.loads(file.read_text())
        if not isinstance(content, dict) or "bench" not in content:
            continue
        heads.append(
            content["bench"]
            | {"machine": content["machine_info"], "date": content["datetime"], "commit": content["commit_info"]}
        )
        for one in content["benchmarks"]:
            stats = {key: one["stats"][key] for key in ("median", "q1", "q3", "rounds")}
            rows.append(one["extra_info"] | stats | {"id": one["fullname"]})
    if not heads:
        raise ReportError(
            f"{path} has no measurements; make some: pytest bench/ --benchmark-only --benchmark-json={path}/bench.json"
        )
    rows.sort(key=lambda row: SUITES.index(row["suite"]))  # stable: within a suite the order of measurement
    return Results(rows, heads)


def machine_of(head: dict[str, Any]) -> str:
    """The CPU or the GPUs of a run."""
    machine = head["machine"]
    if head["device"] == "cuda":
        return ", ".join(gpu["name"] for gpu in machine["gpus"])
    cpu = machine["cpu"]
    return f"{cpu['model']}, {cpu['threads']} threads ({' '.join(cpu['isa'])})"

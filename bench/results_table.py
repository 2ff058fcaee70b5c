"""Write the table of results into README.md: ``python -m bench.results_table``.

Every number comes from a committed file: the cards of the shipped models, measurements in ``bench/results``, and
``bench/published_results.json``, which holds what the papers report.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from bench.processes import ROOT
from bench.report.runs import read
from bench.report.sections import fill, markers
from bench.report.text import header, line, seconds

README = ROOT / "README.md"
SECTION = "results"
PUBLISHED = ROOT / "bench" / "published_results.json"
CARDS = ROOT / "hrm" / "models"
SOLVE = ROOT / "bench" / "results" / "segment-solve-cpu-2026-11-28"
"""The run that has timed the shipped models."""

NONE = "–"


def results_table() -> str:
    """The table, in Markdown."""
    early = ["ours, halting early", "time per puzzle, halting early"]
    head = header(["puzzles", "published", "ours", *early, "hardware", "model"])
    return "\n".join([*head, *map(line, _published()), *map(line, _shipped())])


def _published() -> Iterator[list[str]]:
    """What the papers report, and what we have reached with the same recipes."""
    trained = {card["recipe"]: card["accuracy"][0] for card in _cards()}
    published = json.loads(PUBLISHED.read_text())
    for puzzles in dict.fromkeys(one["puzzles"] for one in published):
        rows = [one for one in published if one["puzzles"] == puzzles]
        ours = [f"{one['model']} {_accuracy_of(trained[one['recipe']])}" for one in rows if one["recipe"] in trained]
        yield [
            puzzles,
            ", ".join(f"{one['model']} {_percent(one['accuracy'])}" for one in rows),
            ", ".join(ours) or "not yet run",
            *[NONE] * 3,
            ", ".join(f"`{one['recipe']}`" for one in rows),
        ]


def _shipped() -> Iterator[list[str]]:
    """The models that come with the package; the time is that of halting early, of models older than the run."""
    results = read(SOLVE)
    cpu = results.heads[0]["machine"]["cpu"]
    seconds_of = {
        row["workload"].split()[3].rstrip(","): row["median"] / row["puzzles"]
        for row in results.of("solve")
        if row["candidate"] == "cpu, calibrated"
    }
    for card in _cards():
        accuracy = card["accuracy"][0]
        timed = card["name"] in seconds_of and card["made_with"]["date"] < results.heads[0]["date"]
        yield [
            accuracy["puzzles"],
            NONE,
            _accuracy_of(accuracy),
            _percent(accuracy["early_exact_accuracy"]),
            seconds(seconds_of[card["name"]]) if timed else NONE,
            f"{cpu['model']}, {cpu['threads']} threads",
            f"`{card['name']}`, {card['parameters']:,} parameters",
        ]


def _cards() -> list[dict[str, Any]]:
    """The cards of the shipped models, Sudokus before mazes."""
    cards = [json.loads(path.read_text()) for path in CARDS.glob("*/card.json")]
    return sorted(cards, key=lambda card: (card["name"].startswith("maze"), card["name"]))


def _accuracy_of(accuracy: dict[str, Any]) -> str:
    return f"{_percent(accuracy['exact_accuracy'])} of {accuracy['count']:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def main() -> int:
    if not fill(README, SECTION, results_table()):
        print(f"bench.results_table: {README} has no section {markers(SECTION)[0]}", file=sys.stderr)
        return 2
    print(f"filled {README.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

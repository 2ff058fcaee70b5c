"""What has become slower: ``python -m bench.compare OLD NEW``, each a run's folder or JSON file.

A benchmark counts as slower (faster) where the middle halves of its samples don't overlap and its median has moved by
more than ``--least`` of itself. Exit code 1 where something is slower.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import ReportError, Row, read, seconds


def changes(
    old: Sequence[Row], new: Sequence[Row], least: float
) -> tuple[list[tuple[Row, Row]], list[tuple[Row, Row]]]:
    """The pairs (old, new) that have become slower, and those that have become faster; the largest change first."""
    before = {row["id"]: row for row in old}
    pairs = [(before[row["id"]], row) for row in new if row["id"] in before]
    slower = [(a, b) for a, b in pairs if b["q1"] > a["q3"] and b["median"] > (1 + least) * a["median"]]
    faster = [(a, b) for a, b in pairs if b["q3"] < a["q1"] and a["median"] > (1 + least) * b["median"]]
    slower.sort(key=lambda pair: -pair[1]["median"] / pair[0]["median"])
    faster.sort(key=lambda pair: -pair[0]["median"] / pair[1]["median"])
    return slower, faster


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--least", type=float, default=0.05, help="of the old median; default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        (old, old_heads), (new, new_heads) = read(options.old), read(options.new)
    except (ReportError, OSError, ValueError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    ours, theirs = old_heads[0]["ceilings"], new_heads[0]["ceilings"]
    for name in ours.keys() & theirs.keys():
        if abs(theirs[name] / ours[name] - 1) > 0.05:  # then the machine has changed, or something else ran on it
            print(f"note: the ceiling {name} was {ours[name]:.4g}, now {theirs[name]:.4g}")
    slower, faster = changes(old, new, options.least)
    for title, pairs in (("slower", slower), ("faster", faster)):
        for a, b in pairs:
            print(
                f"{title}: {b['suite']}, {b['workload']}, {b['candidate']}: {seconds(a['median'])} -> "
                f"{seconds(b['median'])} ({b['median'] / a['median']:.2f} x)"
            )
    known, now = ({row["id"] for row in rows} for rows in (old, new))
    print(
        f"{len(known & now)} benchmarks in both, {len(slower)} slower, {len(faster)} faster; "
        f"{len(known - now)} in OLD alone, {len(now - known)} in NEW alone"
    )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())

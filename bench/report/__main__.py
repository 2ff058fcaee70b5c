"""Write the tables and plots of a run: ``python -m bench.report bench/results/FOLDER [--write]``.

Reads the JSON files of pytest-benchmark in the folder, and writes ``tables.md`` and the pictures beside them:
``ratios.png`` (against eager), ``roofline.png``, ``cost.png`` (against batch and against sequence length),
``memory.png`` (against cycles). ``--write`` also puts the summary between the markers of ``docs/benchmarks.md``.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.processes import ROOT
from bench.report.plots import plots
from bench.report.runs import ReportError, Results, read
from bench.report.sections import fill
from bench.report.tables import not_measured, summary, tables
from hrm.files import written_beside

PAGE = ROOT / "docs" / "benchmarks.md"
"""The page of the site that shows the summary."""

SECTION = "bench.report"


def page_section(results: Results, folder: Path, pictures: Sequence[Path], page: Path) -> str:
    """The summary of a run, with its pictures, for ``page``."""
    shown = [f"![{path.stem}]({os.path.relpath(path.resolve(), page.parent)})" for path in pictures]
    return "\n\n".join([summary(results, folder), *shown])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run's JSON files, such as bench/results/cpu-2026-11-27")
    parser.add_argument(
        "--write", action="store_true", help=f"also fill the marked section of {PAGE.relative_to(ROOT)}"
    )
    options = parser.parse_args(arguments)
    try:
        results = read(options.folder)
    except (ReportError, OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    folder = options.folder if options.folder.is_dir() else options.folder.parent
    pictures = plots(results, folder)
    with written_beside(folder / "tables.md") as part:
        lines = [f"# {folder.resolve().name}", "", *tables(results), *not_measured(results)]
        part.write_text("\n".join(lines) + "\n")
    print(f"wrote {folder / 'tables.md'} and {', '.join(path.name for path in pictures)}")
    if options.write and fill(PAGE, SECTION, page_section(results, folder, pictures, PAGE)):
        print(f"filled {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

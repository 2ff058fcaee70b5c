"""Measure and judge the goals for CPUs on this machine: ``python -m bench.cpu_goals``, in five minutes on two cores.

Values are checked against float64 before anything is timed. All candidates of a line take turns; a turn in which
threads waited for a core does not count, and with too few other turns nothing is judged. Exit codes: 0; 1 if a goal is
missed or a candidate failed. ``--write FOLDER`` leaves ``cpu_goals.json`` and ``cpu_goals.md`` there.
"""

import argparse
import sys
from pathlib import Path

from bench.cpu_goals import machine
from bench.cpu_goals.cases import PARTS
from bench.cpu_goals.goals import FAILED, MISSED
from bench.cpu_goals.run import run
from bench.cpu_goals.write import as_text, write
from hrm_kernels.backends import available_backends


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.cpu_goals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=4.5, help="no workload starts after them; default: 4.5")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="such as bench/results/goals-<cpu>-<date>")
    options = parser.parse_args(arguments)
    if reason := available_backends()["cpu"]:
        print(f"bench.cpu_goals: nothing to measure: {reason}", file=sys.stderr)
        return 2
    described = machine.describe()
    print(machine.title(described), flush=True)
    result = run(
        options.only, machine.machine_of(described), 60 * options.minutes, lambda line: print(line, flush=True)
    )
    print("\n" + as_text(result.verdicts))
    print(f"{result.seconds:.0f} s, {result.disturbed} disturbed turns")
    if options.write:
        for path in write(options.write, described, options.only, result):
            print(f"wrote {path}")
    return 1 if any(one.status in (MISSED, FAILED) for one in result.verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run everything that needs a GPU, on a machine that has one and no network: ``make gpu``, or ``python -m bench.gpu``.

First what decides most, each part in three minutes at most: tuning, the tests of CUDA graphs, a block pass on every
path, short attention with its backward, one answer, long attention against other packages, memcheck on small problems.
Then all tests, all timings, the determinism repeats and racecheck. Every part leaves its files, and ``results.json``
and ``results.md``, in ``bench/results/<device>-<date>/``. Parts may run one by one: parts of the same day and commit
come together in one folder. Installs nothing; ``python -m bench.gpu.wheels`` lists and checks what it needs. Exit
codes: 0; 1 if a part failed or ran out of time; 2 without a GPU.
"""

import argparse
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.gpu import machine
from bench.gpu.run import PARTS, Options, Run
from bench.processes import ROOT


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no torch.compile, no long sequences")
    parser.add_argument("--minutes", type=float, help="for each part; default: 3 for the first parts, then 9.5")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--first", action="store_true", help="only the first parts, of three minutes at most")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="default: bench/results")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny timings of the reference on the CPU, to try this script"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.dry_run:
        print("bench.gpu: there is no GPU that torch can use", file=sys.stderr)
        return 2
    device = "cpu" if options.dry_run else "cuda"
    slug = re.sub(r"[^a-z0-9]+", "-", machine.describe(device)["device"].lower()).strip("-")
    folder = options.out.resolve() / f"{slug}-{datetime.now(timezone.utc):%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, Options(options.quick, options.dry_run), device)
    for name, part in PARTS.items():
        if name not in options.parts or options.first and not part.is_first:
            continue
        for old in folder.glob(part.files):  # from an earlier run of the day
            old.unlink()
        run.part(name, 60 * (options.minutes or part.minutes))
        if name == "timings" and device == "cuda":
            run.result["clocks"]["after the timings of"] = machine.clocks()
    run.write()
    print(f"wrote {folder}")
    return 1 if any(part["status"] in ("failed", "out of time") for part in run.result["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())

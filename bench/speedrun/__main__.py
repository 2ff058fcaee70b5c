"""``python -m bench.speedrun TARGET``: train from scratch to the target, once per seed; ``--page`` writes the page."""

import argparse
import csv
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from bench.processes import ROOT
from bench.report.sections import fill
from bench.report.text import header, line
from hrm.files import write_json
from hrm_kernels import doctor

HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "speedrun.md"
RESULTS = ROOT / "bench" / "results"
PUBLISHED = {
    "Sudoku-Extreme, 1,000 puzzles, an HRM": ("55 %", "sudoku-extreme-1k"),
    "Sudoku-Extreme, 1,000 puzzles, a TRM": ("87 %", "trm-sudoku-extreme-1k"),
}
"""Targets that need a GPU: the published accuracy, and the recipe."""


def targets() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def hrm(*arguments: str) -> None:
    """Run the command line of ``hrm``, in a process of its own."""
    subprocess.run([sys.executable, "-m", "hrm", *arguments], check=True)


def run(target: str, seeds: list[int], work: Path, out: Path) -> None:
    """Train with each seed, and write ``out/TARGET.json`` after each. Data, recipe and runs are left in ``work``."""
    recipe = yaml.safe_load((HERE / f"{target}.yaml").read_text())
    title, data = recipe.pop("title"), recipe.pop("data")
    work.mkdir(parents=True, exist_ok=True)
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    hrm("data", *data.split(), "--out", str(work / "data"), "--force")
    runs, machine = [], doctor.report()
    for seed in seeds:
        folder, started, before = work / f"seed{seed}", time.monotonic(), _cpu_seconds()
        settings = (f"seed={seed}", "keep_best=null", "checkpoint_every=null")
        hrm("train", str(work / "recipe.yaml"), "--data", str(work / "data"), "--out", str(folder), *settings)
        seconds, cpu_seconds = round(time.monotonic() - started, 1), round(_cpu_seconds() - before, 1)
        runs.append({"seed": seed, "seconds": seconds, "cpu_seconds": cpu_seconds, **_end_of(folder)})
        print(f"{title}, seed {seed}: {_accuracy(runs[-1])} after {_minutes(runs[-1]['seconds'])}")
        write_json(
            out / f"{target}.json",
            {
                "title": title,
                "target": recipe["target_exact_accuracy"],
                "data": f"hrm data {data}",
                "runs": runs,
                "threads": recipe.get("threads"),
                "machine": {"cpu": machine["cpu"], "versions": machine["versions"]},
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
            },
        )


def _cpu_seconds() -> float:
    """CPU time of the processes that have ended: what others on the machine took is not in it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _end_of(run_folder: Path) -> dict[str, Any]:
    """Accuracy on the held-out puzzles at the last evaluation, and the steps up to there."""
    last = list(csv.DictReader((run_folder / "evaluation.csv").open()))[-1]
    return {
        "steps": int(last["step"]),
        "exact_accuracy": float(last["exact_accuracy"]),
        "count": int(float(last["count"])),
    }


def page() -> str:
    """The table of all results: the fastest machine first for each target, then what has not been run."""
    rows = []
    for target in targets():
        found = [json.loads(path.read_text()) for path in RESULTS.glob(f"speedrun-*/{target}.json")]
        recipe = yaml.safe_load((HERE / f"{target}.yaml").read_text())
        goal = f"{recipe['title']}, {100 * recipe['target_exact_accuracy']:.0f} %"
        for result in sorted(found, key=lambda one: statistics.mean(run["seconds"] for run in one["runs"])):
            rows.append([goal, _spread(result), _cpu_time(result), _machine(result), _seeds(result), result["date"]])
        if not found:
            rows.append([goal, "not yet run", "", "", "", ""])
    for title, (accuracy, recipe_name) in PUBLISHED.items():
        rows.append([f"{title}, {accuracy}", "not yet run", "", "a GPU", f"`{recipe_name}`", ""])
    return "\n".join([*header(["target", "time", "CPU time", "hardware", "each seed", "date"]), *map(line, rows)])


def _spread(result: dict[str, Any]) -> str:
    """Mean and standard deviation; a run that ended below the target is told."""
    seconds = [run["seconds"] for run in result["runs"]]
    missed = sum(run["exact_accuracy"] < result["target"] for run in result["runs"])
    text = _minutes(statistics.mean(seconds))
    if len(seconds) > 1:
        text += f" ± {_minutes(statistics.stdev(seconds))}"
    return text + (f", {missed} of {len(seconds)} missed the target" if missed else "")


def _cpu_time(result: dict[str, Any]) -> str:
    return _minutes(statistics.mean(run["cpu_seconds"] for run in result["runs"]))


def _seeds(result: dict[str, Any]) -> str:
    return "; ".join(f"{_accuracy(run)} after {_minutes(run['seconds'])}" for run in result["runs"])


def _accuracy(run: dict[str, Any]) -> str:
    return f"{100 * run['exact_accuracy']:.1f} %"


def _machine(result: dict[str, Any]) -> str:
    cpu, threads = result["machine"]["cpu"], result["threads"] or result["machine"]["cpu"]["threads"]
    return f"{cpu['model']}, {threads} thread{'s' if threads > 1 else ''}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speedrun", description=__doc__)
    parser.add_argument("target", nargs="?", choices=targets())
    parser.add_argument("--seeds", default="1,2,3", help="seeds of the runs (default: 1,2,3)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "speedrun", help="folder for data and runs")
    parser.add_argument("--out", type=Path, help="folder for the result (default: bench/results/speedrun-cpu-DATE)")
    parser.add_argument("--page", action="store_true", help="write the table into docs/speedrun.md")
    arguments = parser.parse_args()
    if not re.fullmatch(r"\d+(,\d+)*", arguments.seeds):
        parser.error(f"--seeds {arguments.seeds}: expected numbers, as in --seeds 1,2,3")
    if arguments.target:
        out = arguments.out or RESULTS / time.strftime("speedrun-cpu-%Y-%m-%d", time.gmtime())
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        run(arguments.target, seeds, arguments.work / arguments.target, out)
    elif not arguments.page:
        parser.error(f"name a target ({', '.join(targets())}), or --page")
    if arguments.page:
        fill(PAGE, "speedrun", page())


if __name__ == "__main__":
    main()

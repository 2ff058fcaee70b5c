"""Everything that needs a GPU, on a machine that has one and no network: ``make gpu``, or ``python -m bench.gpu``.

Runs the tests, the timings, the determinism repeats and compute-sanitizer, each in processes of its own, so that what
one breaks doesn't stop the others, and writes ``results.json``, ``results.md`` and the logs under
``bench/results/<device>-<date>/`` after every part. Parts may run one by one: those of the same day and commit come
together in one file. Needs torch, triton and pytest with hypothesis; the cuda backend needs the library of ``pip
install -e .`` and apache-tvm-ffi, the training step and the tests of ``hrm`` need pydantic and omegaconf. Installs
nothing. Exit codes: 0, or 1 where a part failed or ran out of time, or 2 without a GPU.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hrm_kernels
from bench import sanitize, timing

ROOT = Path(__file__).parents[1]
PARTS = {"tests": "tests*.log", "timings": "timings*", "determinism": "determinism-*.log", "sanitizer": "*check-*.log"}
"""In order, each with the files it leaves beside the results."""

KEPT = ("parts", "failed_tests", "ceilings", "timings", "expected")
"""What an earlier run of other parts has found."""

KERNELS = ("triton", "cuda")
"""The backends that are timed, repeated and watched."""

Rows = dict[tuple[str, str], dict[str, Any]]
"""The measurements by workload and backend."""


@dataclass(frozen=True)
class Expectation:
    """What issues 3 and 4 say of an H200 in bfloat16, S = 82, batch 384 where nothing else is said."""

    what: str
    expected: str
    value: Callable[[Rows, dict[str, float]], float]  # KeyError: wasn't measured
    met: Callable[[float], bool]
    form: str


def _seconds(rows: Rows, workload: str, backend: str = "triton") -> float:
    return rows[workload, backend]["seconds"]


def _of_copy(workload: str) -> Callable[[Rows, dict[str, float]], float]:
    return lambda rows, ceilings: (
        rows[workload, "triton"]["bytes"] / _seconds(rows, workload) / ceilings["copy_bytes_per_s"]
    )


def _rate(rows: Rows, workload: str) -> float:
    return rows[workload, "triton"]["operations"] / _seconds(rows, workload)


def _times(workload: str, slower: str) -> Callable[[Rows, dict[str, float]], float]:
    return lambda rows, ceilings: _seconds(rows, workload, slower) / _seconds(rows, workload)


def _launches_of_a_pass(rows: Rows, ceilings: dict[str, float]) -> float:
    """Kernels, copies and fills of a segment's six passes: four in one call, and two alone."""
    together, alone = (rows[op + " batch 1", "cuda"]["launches"] for op in ("recurrent_cycles", "reasoning_module"))
    if None in (together, alone):
        raise KeyError("launches")  # the profiler saw none
    return (together + 2 * alone) / 6


BLOCK = "transformer_block"
EXPECTED = [
    Expectation(
        "add_rms_norm, of the copy bandwidth", ">= 80 %", _of_copy("add_rms_norm"), lambda x: x >= 0.8, "{:.0%}"
    ),
    Expectation("swiglu, of the copy bandwidth", ">= 80 %", _of_copy("swiglu"), lambda x: x >= 0.8, "{:.0%}"),
    Expectation(
        "short attention, forward",
        "<= 50 µs",
        lambda rows, ceilings: 1e6 * _seconds(rows, "rope_attention"),
        lambda x: x <= 50,
        "{:.1f} µs",
    ),
    Expectation(
        "block pass without gradient",
        "<= 0.40 ms",
        lambda rows, ceilings: 1e3 * _seconds(rows, BLOCK),
        lambda x: x <= 0.4,
        "{:.3f} ms",
    ),
    Expectation(
        "block pass, of the matrix ceiling",
        ">= 65 %",
        lambda rows, ceilings: _rate(rows, BLOCK) / ceilings["matmul_flops_per_s"],
        lambda x: x >= 0.65,
        "{:.0%}",
    ),
    Expectation(
        "block pass, faster than eager", ">= 1.5 x", _times(BLOCK, "reference"), lambda x: x >= 1.5, "{:.2f} x"
    ),
    Expectation(
        "block pass, faster than torch.compile",
        ">= 1.2 x",
        _times(BLOCK, "torch.compile"),
        lambda x: x >= 1.2,
        "{:.2f} x",
    ),
    Expectation(
        "training step",
        "<= 30 ms",
        lambda rows, ceilings: 1e3 * _seconds(rows, "training step, one graph"),
        lambda x: x <= 30,
        "{:.1f} ms",
    ),
    Expectation(
        "attention forward at S = 901",
        ">= 350 TFLOP/s",
        lambda rows, ceilings: _rate(rows, "rope_attention S=901") / 1e12,
        lambda x: x >= 350,
        "{:.0f} TFLOP/s",
    ),
    Expectation(
        "one Sudoku answer, 16 segments, cuda",
        "<= 4 ms",
        lambda rows, ceilings: 1e3 * _seconds(rows, "Sudoku answer", "cuda"),
        lambda x: x <= 4,
        "{:.2f} ms",
    ),
    Expectation("launches of a module pass, batch 1, cuda", "<= 1", _launches_of_a_pass, lambda x: x <= 1, "{:.2f}"),
]


class Run:
    """One run of this script: where its results are, and how long it may take."""

    def __init__(self, folder: Path, options: argparse.Namespace, device: str) -> None:
        self.folder, self.options, self.device = folder, options, device
        self.result: dict[str, Any] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python -m bench.gpu", *sys.argv[1:]]),
            "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
            **_machine(device),
            "backends": hrm_kernels.available_backends(),
            "parts": {},
            "ceilings": {},
            "timings": [],
            "expected": [],
        }
        file = folder / "results.json"
        if file.exists() and (earlier := json.loads(file.read_text()))["commit"] == self.result["commit"]:
            self.result |= {name: earlier[name] for name in KEPT if name in earlier}

    def call(
        self, log: str, command: Sequence[str], seconds: float, environment: dict[str, str]
    ) -> tuple[int | None, str]:
        """Run a command, its output into a log. Returns its exit code (None: out of time) and the log's text."""
        packages = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": packages, "PYTHONUNBUFFERED": "1"} | environment
        path = self.folder / log
        with path.open("a") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            # a session of its own: what it starts (test workers, the program under a sanitizer) ends with it
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code: int | None = process.wait(max(1, seconds))
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return code, path.read_text(errors="replace")

    def part(self, name: str, seconds: float) -> None:
        """Run a part, never raise, write what there is so far."""
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        start = time.monotonic()
        try:
            status, summary = getattr(self, f"_{name}")(seconds)
        except Exception as error:
            status, summary = "failed", f"{type(error).__name__}: {error}"
        self.result["parts"][name] = {
            "status": status,
            "summary": summary,
            "seconds": round(time.monotonic() - start, 1),
        }
        print(f"{name}: {status}; {summary}", flush=True)
        self.write()

    def _tests(self, seconds: float) -> tuple[str, str]:
        pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist"):
            pytest += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadscope"]
        runs = {"tests.log": ["-m", "gpu or not slow", "tests/hrm_kernels", "tests/csrc"]}
        said, worst, failed, deadline = [], "passed", set(), time.monotonic() + seconds
        if missing := [name for name in ("pydantic", "omegaconf") if not importlib.util.find_spec(name)]:
            said, worst = [f"those of hrm left out, for want of {' and '.join(missing)}"], "failed"
        else:
            runs["tests-hrm.log"] = ["-m", "gpu", "tests/hrm"]
        for log, arguments in runs.items():
            code, output = self.call(log, [*pytest, *arguments], deadline - time.monotonic(), {})
            lines = [line for line in output.splitlines() if line.strip()]
            # as they come, so that those of a run that is cut off count too
            failed |= set(re.findall(r"\b(?:FAILED|ERROR) (tests/\S+)", output))
            failed |= set(re.findall(r"^(tests/\S+) (?:FAILED|ERROR)", output, re.M))
            said.append(lines[-1] if code is not None else f"ran out of time; {lines[-1]}")
            worst = worst if code == 0 else _status(code)
        self.result["failed_tests"] = sorted(failed)
        return worst, "; ".join(said)

    def _timings(self, seconds: float) -> tuple[str, str]:
        file, deadline = self.folder / "timings.jsonl", time.monotonic() + seconds
        for _ in range(20):  # a CUDA error ends the process: another one goes on with the next workload
            left = deadline - time.monotonic()
            command = [sys.executable, "-m", "bench.timing", str(file), "--device", self.device]
            command += ["--seconds", str(max(0, left - 60)), *(["--quick"] if self.options.quick else [])]
            command += ["--backends", "reference", *KERNELS]
            if self.options.dry_run:
                command += ["--tiny", "--backends", "reference", "--dtype", "float32"]
            code, _ = self.call("timings.log", command, left, {})
            self._read_timings(file)
            if code in (0, None) or deadline - time.monotonic() < 20:
                break
        failed = [row for row in self.result["timings"] if not row["status"].startswith(("ok", "skipped", "unavail"))]
        measured = sum(row["status"] == "ok" for row in self.result["timings"])
        summary = f"{measured} measured, {len(failed)} failed"
        return "failed" if failed else _status(code), summary + (", ran out of time" if code is None else "")

    def _read_timings(self, file: Path) -> None:
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        finished = {_attempt(line) for line in lines if line.get("status") != "started"}
        rows = []
        for line in lines:
            if line["workload"] == "ceilings":
                self.result["ceilings"] = {name: value for name, value in line.items() if name != "workload"}
            elif line["status"] != "started":
                rows.append(line)
            elif _attempt(line) not in finished:
                rows.append({**line, "status": "failed: its process ended; see timings.log"})
        self.result["timings"] = rows
        by_name = {(row["workload"], row["backend"]): row for row in rows if row["status"] == "ok"}
        self.result["expected"] = [_compare(expectation, by_name, self.result["ceilings"]) for expectation in EXPECTED]

    def _determinism(self, seconds: float) -> tuple[str, str]:
        command = [sys.executable, "-m", "bench.sanitize", "--repeats", "5" if self.options.quick else "20"]
        runs = {backend: (f"determinism-{backend}.log", [*command, "--backend", backend]) for backend in KERNELS}
        return self._each(runs, seconds, 20, {})

    def _sanitizer(self, seconds: float) -> tuple[str, str]:
        checker = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(checker).exists():
            return "skipped", "compute-sanitizer is not on this machine"
        program = [sys.executable, "-m", "bench.sanitize", "--quick", "--dtypes", "bfloat16", "float32"]
        # every tensor its own allocation, so that a kernel that leaves its tensor is seen
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        runs = {}
        for tool in ("memcheck", "racecheck"):
            command = [checker, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *program]
            for backend in KERNELS:
                runs[f"{tool} of {backend}"] = f"{tool}-{backend}.log", [*command, "--backend", backend]
        return self._each(runs, seconds, 30, environment)

    def _each(
        self, runs: dict[str, tuple[str, list[str]]], seconds: float, reserve: float, environment: dict[str, str]
    ) -> tuple[str, str]:
        """Runs of bench.sanitize (log and command by name), in equal parts of the time, but for ``reserve`` of each."""
        said, worst, deadline = [], "passed", time.monotonic() + seconds
        for done, (name, (log, command)) in enumerate(runs.items()):
            share = (deadline - time.monotonic()) / (len(runs) - done)
            command = [*command, "--seconds", str(max(1, share - reserve))]
            status, summary = self._sanitize(log, command, share, environment)
            said.append(f"{name} {status}: {summary}")
            worst = status if status != "passed" else worst
        return worst, "; ".join(said)

    def _sanitize(self, log: str, command: list[str], seconds: float, environment: dict[str, str]) -> tuple[str, str]:
        if self.options.dry_run:
            command = [*command, "--backend", "reference", "--device", "cpu", "--dtypes", "float32", "--quick"]
            command += ["--repeats", "2"]
        code, output = self.call(log, command, seconds, environment)
        telling = re.findall(r"^(?:\d+ problems.*|out of time.*|left out.*|wrong:.*|=+ ERROR SUMMARY.*)$", output, re.M)
        status = _status(None if code == sanitize.OUT_OF_TIME else code)
        return status, " / ".join(telling[:6]) or f"nothing said; see {log}"

    def write(self) -> None:
        (self.folder / "results.json").write_text(json.dumps(self.result, indent=1) + "\n")
        (self.folder / "results.md").write_text(table(self.result))


def _attempt(line: dict[str, Any]) -> tuple[str, bool]:
    """A workload is timed on its own, and again where torch.compile has to compile it."""
    return line["workload"], line.get("backend") == timing.COMPILE


def _status(code: int | None) -> str:
    return "out of time" if code is None else "passed" if code == 0 else "failed"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _clocks() -> str:
    fields = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _machine(device: str) -> dict[str, Any]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "triton", "pytest"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    if device != "cuda":
        return {"device": platform.processor() or platform.machine(), "versions": versions, "clocks": {}}
    properties = torch.cuda.get_device_properties(0)
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2": properties.L2_cache_size,
        "versions": versions | {"driver": driver, "cuda": torch.version.cuda or torch.version.hip},
        "clocks": {"before": _clocks()},
    }


def _compare(expectation: Expectation, rows: Rows, ceilings: dict[str, float]) -> dict[str, Any]:
    try:
        value = expectation.value(rows, ceilings)
    except KeyError:
        return {"what": expectation.what, "expected": expectation.expected, "measured": "not measured", "met": None}
    return {
        "what": expectation.what,
        "expected": expectation.expected,
        "measured": expectation.form.format(value),
        "value": value,
        "met": expectation.met(value),
    }


def table(result: dict[str, Any]) -> str:
    """The readable form of a run."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"# {result['device']}, {result['date'][:10]}",
        "",
        f"`{result['command']}` at {result['commit']}; {versions}.",
    ]
    for when, clocks in result["clocks"].items():
        lines.append(f"Clocks {when} the run (SM, memory, SM at most; temperature, power): {clocks}.")
    lines += [f"Backend {name}: {reason or 'runs'}." for name, reason in result["backends"].items()]
    lines += ["", "| part | result | seconds | |", "| --- | --- | --- | --- |"]
    for name, part in result["parts"].items():
        lines.append(f"| {name} | {part['status']} | {part['seconds']} | {part['summary'].replace('|', '/')} |")
    lines += [f"- {line}" for line in result.get("failed_tests", [])]
    if result["ceilings"]:
        copy, matmul = result["ceilings"]["copy_bytes_per_s"], result["ceilings"]["matmul_flops_per_s"]
        lines += ["", "## Expected (issues 3 and 4: H200, bfloat16) and measured", ""]
        lines += ["| what | expected | measured | met |", "| --- | --- | --- | --- |"]
        for row in result["expected"]:
            met = {True: "yes", False: "no", None: ""}[row["met"]]
            lines.append(f"| {row['what']} | {row['expected']} | {row['measured']} | {met} |")
        lines += [
            "",
            "## Timings",
            "",
            f"Ceilings of this run: copy {copy / 1e9:.0f} GB/s (read plus written), "
            f"bfloat16 matrix product {matmul / 1e12:.3g} TFLOP/s.",
            "Medians, from the 10th to the 90th percentile. graph: replays of a CUDA graph over rotating inputs, no "
            "launches; calls: with launches. GB/s and TFLOP/s count the fewest bytes and operations.",
            "",
            "| workload | dtype | backend | µs | from, to | how | GB/s | of copy | TFLOP/s | of matmul |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in result["timings"]:
            start = f"| {row['workload']} | {row.get('dtype', '')} | {row['backend']} |"
            if row["status"] != "ok":
                lines.append(f"{start} {row['status'].replace('|', '/')} | | | | | | |")
                continue
            micro = 1e6 * row["seconds"]
            bandwidth, rate = row["bytes"] / row["seconds"], row["operations"] / row["seconds"]
            moved = f"{bandwidth / 1e9:.0f} | {bandwidth / copy:.0%}" if row["bytes"] else "|"
            computed = f"{rate / 1e12:.3g} | {rate / matmul:.0%}" if row["operations"] else "|"
            spread = f"{1e6 * row['low']:.1f}, {1e6 * row['high']:.1f}"
            lines.append(f"{start} {micro:.1f} | {spread} | {row['mode']} | {moved} | {computed} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no torch.compile, no long sequences")
    parser.add_argument("--minutes", type=float, default=9.5, help="for each part; default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="default: bench/results")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny timings of the reference on the CPU, to try this out"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.dry_run:
        print("bench.gpu: there is no GPU that torch can use", file=sys.stderr)
        return 2
    device = "cpu" if options.dry_run else "cuda"
    machine = _machine(device)["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    folder = options.out.resolve() / f"{slug}-{datetime.now(timezone.utc):%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, options, device)
    for name in (name for name in PARTS if name in options.parts):
        for old in folder.glob(PARTS[name]):  # of an earlier run of the day
            old.unlink()
        run.part(name, 60 * options.minutes)
        if name == "timings" and device == "cuda":
            run.result["clocks"]["after the timings of"] = _clocks()
    run.write()
    print(f"wrote {folder}")
    return 1 if any(part["status"] in ("failed", "out of time") for part in run.result["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())

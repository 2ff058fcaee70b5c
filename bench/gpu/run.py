"""The parts of a run on a GPU: tests, timings, determinism, compute-sanitizer.

Each part runs in its own processes, so a part that crashes does not stop the others. After every part the results
so far are written to ``results.json`` and ``results.md``.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import hrm_kernels
from bench import processes, sanitize
from bench.gpu import machine
from bench.gpu.table import table
from bench.gpu.targets import TARGETS, compare
from bench.gpu.timings import attempt_of
from bench.processes import ROOT

PARTS = {"tests": "tests*.log", "timings": "timings*", "determinism": "determinism-*.log", "sanitizer": "*check-*.log"}
"""The parts in order, each with the files it leaves beside the results."""

KEPT = ("parts", "failed_tests", "ceilings", "timings", "expected")
"""Results of other parts that an earlier run at the same commit has left."""

KERNELS = ("triton", "cuda")
"""The backends that are timed, repeated and watched."""


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        quick: fewer repeats, no torch.compile, no long sequences.
        dry_run: tiny timings of the reference backend on the CPU.
    """

    quick: bool
    dry_run: bool


class Run:
    """One run: where its results are, and what they are so far."""

    def __init__(self, folder: Path, options: Options, device: str) -> None:
        self.folder, self.options, self.device = folder, options, device
        self.result: dict[str, Any] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python -m bench.gpu", *sys.argv[1:]]),
            "commit": machine.output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
            **machine.describe(device),
            "backends": hrm_kernels.available_backends(),
            "parts": {},
            "ceilings": {},
            "timings": [],
            "expected": [],
        }
        file = folder / "results.json"
        if file.exists() and (earlier := json.loads(file.read_text()))["commit"] == self.result["commit"]:
            self.result |= {name: earlier[name] for name in KEPT if name in earlier}

    def part(self, name: str, seconds: float) -> None:
        """Run a part and write the results so far; a part that raises has failed."""
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        start = time.monotonic()
        try:
            status, summary = getattr(self, f"_{name}")(seconds)
        except Exception as error:
            status, summary = "failed", f"{type(error).__name__}: {error}"
        took = round(time.monotonic() - start, 1)
        self.result["parts"][name] = {"status": status, "summary": summary, "seconds": took}
        print(f"{name}: {status}; {summary}", flush=True)
        self.write()

    def write(self) -> None:
        (self.folder / "results.json").write_text(json.dumps(self.result, indent=1) + "\n")
        (self.folder / "results.md").write_text(table(self.result))

    def call(
        self, log: str, command: Sequence[str], seconds: float, environment: Mapping[str, str]
    ) -> tuple[int | None, str]:
        """Run a command with its output in a log; return its exit code (None: out of time) and the log's text."""
        path = self.folder / log
        with path.open("a") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            # in its own session: what it starts (test workers, the program under a sanitizer) ends with it
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**processes.environment(), "PYTHONUNBUFFERED": "1", **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(max(1, seconds))
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return code, path.read_text(errors="replace")

    def _tests(self, seconds: float) -> tuple[str, str]:
        pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist"):
            pytest += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadscope"]
        runs = {"tests.log": ["-m", "gpu or not slow", "tests/hrm_kernels", "tests/csrc"]}
        summaries, worst, failed, deadline = [], "passed", set(), time.monotonic() + seconds
        if missing := [name for name in ("pydantic", "omegaconf") if not importlib.util.find_spec(name)]:
            summaries, worst = [f"tests of hrm left out: {' and '.join(missing)} not installed"], "failed"
        else:
            runs["tests-hrm.log"] = ["-m", "gpu", "tests/hrm"]
        for log, arguments in runs.items():
            code, output = self.call(log, [*pytest, *arguments], deadline - time.monotonic(), {})
            lines = [line for line in output.splitlines() if line.strip()]
            # from the progress lines too, for a run that is cut off before its summary
            failed |= set(re.findall(r"\b(?:FAILED|ERROR) (tests/\S+)", output))
            failed |= set(re.findall(r"^(tests/\S+) (?:FAILED|ERROR)", output, re.M))
            summaries.append(lines[-1] if code is not None else f"ran out of time; {lines[-1]}")
            worst = worst if code == 0 else _status_of(code)
        self.result["failed_tests"] = sorted(failed)
        return worst, "; ".join(summaries)

    def _timings(self, seconds: float) -> tuple[str, str]:
        file, deadline = self.folder / "timings.jsonl", time.monotonic() + seconds
        for _ in range(20):  # a CUDA error ends the process; the next one continues with the next workload
            left = deadline - time.monotonic()
            command = [sys.executable, "-m", "bench.gpu.timings", str(file), "--device", self.device]
            command += ["--seconds", str(max(0, left - 60)), *(["--quick"] if self.options.quick else [])]
            command += ["--backends", "reference", *KERNELS]
            if self.options.dry_run:
                command += ["--tiny", "--backends", "reference", "--dtype", "float32"]
            code, _ = self.call("timings.log", command, left, {})
            self.read_timings(file)
            if code in (0, None) or deadline - time.monotonic() < 20:
                break
        failed = [row for row in self.result["timings"] if not row["status"].startswith(("ok", "skipped", "unavail"))]
        measured = sum(row["status"] == "ok" for row in self.result["timings"])
        summary = f"{measured} measured, {len(failed)} failed"
        return "failed" if failed else _status_of(code), summary + (", ran out of time" if code is None else "")

    def read_timings(self, file: Path) -> None:
        """Take over the lines of ``bench.gpu.timings``; a workload that only started has failed."""
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        finished = {attempt_of(line) for line in lines if line.get("status") != "started"}
        rows = []
        for line in lines:
            if line["workload"] == "ceilings":
                self.result["ceilings"] = {name: value for name, value in line.items() if name != "workload"}
            elif line["status"] != "started":
                rows.append(line)
            elif attempt_of(line) not in finished:
                rows.append({**line, "status": "failed: its process ended; see timings.log"})
        self.result["timings"] = rows
        measured = {(row["workload"], row["backend"]): row for row in rows if row["status"] == "ok"}
        self.result["expected"] = [compare(target, measured, self.result["ceilings"]) for target in TARGETS]

    def _determinism(self, seconds: float) -> tuple[str, str]:
        command = [sys.executable, "-m", "bench.sanitize", "--repeats", "5" if self.options.quick else "20"]
        runs = {backend: (f"determinism-{backend}.log", [*command, "--backend", backend]) for backend in KERNELS}
        return self._sanitize_each(runs, seconds, 20, {})

    def _sanitizer(self, seconds: float) -> tuple[str, str]:
        checker = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(checker).exists():
            return "skipped", "compute-sanitizer is not on this machine"
        program = [sys.executable, "-m", "bench.sanitize", "--quick", "--dtypes", "bfloat16", "float32"]
        # each tensor gets its own allocation, so that access outside of it is noticed
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        runs = {}
        for tool in ("memcheck", "racecheck"):
            command = [checker, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *program]
            for backend in KERNELS:
                runs[f"{tool} of {backend}"] = f"{tool}-{backend}.log", [*command, "--backend", backend]
        return self._sanitize_each(runs, seconds, 30, environment)

    def _sanitize_each(
        self, runs: dict[str, tuple[str, list[str]]], seconds: float, reserve: float, environment: Mapping[str, str]
    ) -> tuple[str, str]:
        """Run several ``bench.sanitize`` (log and command by name) in equal shares of the time.

        Args:
            reserve: seconds of each share in which no new problem starts.
        """
        summaries, worst, deadline = [], "passed", time.monotonic() + seconds
        for done, (name, (log, command)) in enumerate(runs.items()):
            share = (deadline - time.monotonic()) / (len(runs) - done)
            command = [*command, "--seconds", str(max(1, share - reserve))]
            status, summary = self._sanitize(log, command, share, environment)
            summaries.append(f"{name} {status}: {summary}")
            worst = status if status != "passed" else worst
        return worst, "; ".join(summaries)

    def _sanitize(
        self, log: str, command: list[str], seconds: float, environment: Mapping[str, str]
    ) -> tuple[str, str]:
        if self.options.dry_run:
            command = [*command, "--backend", "reference", "--device", "cpu", "--dtypes", "float32", "--quick"]
            command += ["--repeats", "2"]
        code, output = self.call(log, command, seconds, environment)
        shown = re.findall(r"^(?:\d+ problems.*|out of time.*|left out.*|wrong:.*|=+ ERROR SUMMARY.*)$", output, re.M)
        status = _status_of(None if code == sanitize.OUT_OF_TIME else code)
        return status, " / ".join(shown[:6]) or f"no summary; see {log}"


def _status_of(code: int | None) -> str:
    return "out of time" if code is None else "passed" if code == 0 else "failed"

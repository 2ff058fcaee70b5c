"""The parts of a run on a GPU, the ones that decide most first.

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
from bench.gpu.suites import SUITES
from bench.gpu.table import table
from bench.gpu.targets import TARGETS, compare
from bench.gpu.timings import attempt_of
from bench.processes import ROOT
from hrm_kernels.tuning.table import path_of


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        files: pattern of the files it leaves beside the results.
        minutes: it ends by itself after that time.
        is_first: one of those that fit in the first minutes on a machine.
    """

    files: str
    minutes: float = 9.5
    is_first: bool = False


PARTS = {
    "tuning": Part("tuning.*", 3, True),
    "graphs": Part("graphs.log", 3, True),
    "block": Part("block.*", 3, True),
    "short-backward": Part("short-backward.*", 3, True),
    "answer": Part("answer.*", 3, True),
    "long-attention": Part("long-attention.*", 3, True),
    "memcheck": Part("memcheck-*.log", 3, True),
    "tests": Part("tests*.log"),
    "timings": Part("timings.*"),
    "determinism": Part("determinism-*.log"),
    "racecheck": Part("racecheck-*.log"),
}
"""The parts in order."""

KEPT = ("parts", "failed_tests", "ceilings", "timings", "expected")
"""Results of other parts that an earlier run at the same commit has left."""

TUNED = ("--dtypes", "bfloat16")
"""The dtypes of the published models; the others are tuned by ``python -m hrm_kernels.tuning``."""

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
            "failed_tests": {},
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
            status, summary = self._run_part(name, seconds)
        except Exception as error:
            status, summary = "failed", f"{type(error).__name__}: {error}"
        took = round(time.monotonic() - start, 1)
        self.result["parts"][name] = {"status": status, "summary": summary, "seconds": took}
        print(f"{name}: {status}; {summary}", flush=True)
        self.write()

    def _run_part(self, name: str, seconds: float) -> tuple[str, str]:
        if name in SUITES:
            return self._time(name, seconds)
        if name in ("memcheck", "racecheck"):
            return self._sanitizer(name, seconds)
        runs = {"tuning": self._tuning, "graphs": self._graphs, "tests": self._tests, "determinism": self._determinism}
        return runs[name](seconds)

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

    def _tuning(self, seconds: float) -> tuple[str, str]:
        """Measure the table of this device in bfloat16, and keep a copy beside the results."""
        if self.device != "cuda":
            return "skipped", "there is nothing to tune on a CPU"
        code, output = self.call("tuning.log", [sys.executable, "-m", "hrm_kernels.tuning", *TUNED], seconds, {})
        path = path_of(self.result["device"])
        if code == 0:
            shutil.copy(path, self.folder / "tuning.json")
        return _status_of(code), output.strip().splitlines()[-1]

    def _graphs(self, seconds: float) -> tuple[str, str]:
        """The tests of graphs and of training steps as graphs."""
        files = ["tests/hrm_kernels/test_graphs.py", "tests/hrm_kernels/test_triton_optim.py"]
        files += ["tests/csrc/test_recurrent_cycles.py", "tests/hrm/training/test_step_graph.py"]
        if self.options.dry_run:  # the quick ones
            files = files[:1]
        return self._test("graphs", {"graphs.log": ["-k", "graph", *files]}, seconds)

    def _tests(self, seconds: float) -> tuple[str, str]:
        runs = {"tests.log": ["-m", "gpu or not slow", "tests/hrm_kernels", "tests/csrc"]}
        missing = [name for name in ("pydantic", "omegaconf") if not importlib.util.find_spec(name)]
        if not missing:
            runs["tests-hrm.log"] = ["-m", "gpu", "tests/hrm"]
        status, summary = self._test("tests", runs, seconds)
        if missing:
            return "failed", f"tests of hrm left out: {' and '.join(missing)} not installed; {summary}"
        return status, summary

    def _test(self, part: str, runs: Mapping[str, Sequence[str]], seconds: float) -> tuple[str, str]:
        """Run pytest with several lists of arguments, each with its log."""
        pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist"):
            pytest += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadscope"]
        summaries, worst, failed, deadline = [], "passed", set(), time.monotonic() + seconds
        for log, arguments in runs.items():
            code, output = self.call(log, [*pytest, *arguments], deadline - time.monotonic(), {})
            lines = [line for line in output.splitlines() if line.strip()]
            # from the progress lines too, for a run that is cut off before its summary
            failed |= set(re.findall(r"\b(?:FAILED|ERROR) (tests/\S+)", output))
            failed |= set(re.findall(r"^(tests/\S+) (?:FAILED|ERROR)", output, re.M))
            summaries.append(lines[-1] if code is not None else f"ran out of time; {lines[-1]}")
            worst = worst if code == 0 else _status_of(code)
        self.result["failed_tests"][part] = sorted(failed)
        return worst, "; ".join(summaries)

    def _time(self, suite: str, seconds: float) -> tuple[str, str]:
        """Time a suite."""
        file, deadline = self.folder / f"{suite}.jsonl", time.monotonic() + seconds
        for _ in range(20):  # a CUDA error ends the process; the next one continues with the next workload
            left = deadline - time.monotonic()
            reserve = 60 if SUITES[suite].compiled else 20  # seconds in which no new workload starts
            command = [sys.executable, "-m", "bench.gpu.timings", str(file), "--suite", suite, "--device", self.device]
            command += ["--seconds", str(max(0, left - reserve)), *(["--quick"] if self.options.quick else [])]
            command += ["--backends", "reference", *KERNELS]
            if self.options.dry_run:
                command += ["--tiny", "--backends", "reference", "--dtype", "float32"]
            code, _ = self.call(f"{suite}.log", command, left, {})
            self.read_timings()
            if code in (0, None) or deadline - time.monotonic() < 20:
                break
        own = [row for row in self.result["timings"] if row["part"] == suite]
        failed = [row for row in own if not row["status"].startswith(("ok", "skipped", "unavail", "absent"))]
        measured = sum(row["status"] == "ok" for row in own)
        summary = f"{measured} measured, {len(failed)} failed"
        return "failed" if failed else _status_of(code), summary + (", ran out of time" if code is None else "")

    def read_timings(self) -> None:
        """Take over the lines of ``bench.gpu.timings`` of all suites; a workload that only started has failed."""
        rows = []
        for suite in SUITES:
            file = self.folder / f"{suite}.jsonl"
            lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            finished = {attempt_of(line) for line in lines if line.get("status") != "started"}
            for line in lines:
                if line["workload"] == "ceilings":
                    self.result["ceilings"] = {name: value for name, value in line.items() if name != "workload"}
                elif line["status"] != "started":
                    rows.append({"part": suite, **line})
                elif attempt_of(line) not in finished:
                    status = f"failed: its process ended; see {suite}.log"
                    rows.append({"part": suite, **line, "status": status})
        self.result["timings"] = rows
        measured = {(row["workload"], row["backend"]): row for row in rows if row["status"] == "ok"}
        self.result["expected"] = [compare(target, measured, self.result["ceilings"]) for target in TARGETS]

    def _determinism(self, seconds: float) -> tuple[str, str]:
        command = [sys.executable, "-m", "bench.sanitize", "--repeats", "5" if self.options.quick else "20"]
        runs = {backend: (f"determinism-{backend}.log", [*command, "--backend", backend]) for backend in KERNELS}
        return self._sanitize_each(runs, seconds, 20, {})

    def _sanitizer(self, tool: str, seconds: float) -> tuple[str, str]:
        """Small problems under a tool of compute-sanitizer."""
        checker = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(checker).exists():
            return "skipped", "compute-sanitizer is not on this machine"
        command = [checker, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        command += [sys.executable, "-m", "bench.sanitize", "--quick", "--dtypes", "bfloat16", "float32"]
        # each tensor gets its own allocation, so that access outside of it is noticed
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        runs = {f"{tool} of {one}": (f"{tool}-{one}.log", [*command, "--backend", one]) for one in KERNELS}
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

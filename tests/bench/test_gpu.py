"""``make gpu`` on a machine without a GPU: it says so, and a dry run on the CPU writes its files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import suites, timings, wheels
from bench.gpu.run import PARTS, Options, Run
from bench.gpu.targets import TARGETS, compare

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path):
    done = run("--out", str(tmp_path))
    assert done.returncode == 2 and done.stderr == "bench.gpu: there is no GPU that torch can use\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_dry_run_writes_json_and_table(tmp_path):
    done = run("--dry-run", "--out", str(tmp_path), "--minutes", "8", "--parts", *DRY)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    result = json.loads((folder / "results.json").read_text())
    statuses = {name: part["status"] for name, part in result["parts"].items()}
    assert statuses.pop("tuning") == statuses.pop("memcheck") == "skipped"
    assert set(statuses.values()) == {"passed"}, result["parts"]
    measured = [row for row in result["timings"] if not row["status"].startswith("absent")]  # packages for GPUs only
    rows = {row["workload"]: row for row in measured}
    assert {row["part"] for row in measured} == set(suites.SUITES)
    assert {row["status"] for row in rows.values()} == {"ok"} and "transformer_block + backward" in rows
    for row in rows.values():
        assert row["low"] <= row["seconds"] <= row["high"] and row["seconds"] > 0
    for name in ("transformer_block + backward", "Sudoku answer"):
        assert max(rows[name]["error"]) < 1e-5  # checked against float64 before it was timed
    assert result["ceilings"]["copy_bytes_per_s"] > 0 and result["versions"]["torch"] == torch.__version__
    text = (folder / "results.md").read_text()
    assert all(f"| {name} | float32 | reference |" in text for name in rows)


DRY = [name for name in PARTS if name not in ("tests", "racecheck")]


def timing(workload, backend, seconds, **more):
    return {
        "workload": workload,
        "backend": backend,
        "status": "ok",
        "seconds": seconds,
        "bytes": 0,
        "operations": 0,
    } | more


def test_targets_and_measured_values():
    rows = [
        timing("add_rms_norm", "triton", 1e-3, bytes=3.4e9),
        timing("transformer_block", "triton", 0.38e-3, operations=2e11),
        timing("transformer_block", "reference", 0.5e-3, operations=2e11),
    ]
    by_name = {(row["workload"], row["backend"]): row for row in rows}
    ceilings = {"copy_bytes_per_s": 4e12, "matmul_flops_per_s": 8e14}
    got = {target.what: compare(target, by_name, ceilings) for target in TARGETS}
    assert got["add_rms_norm, of the copy bandwidth"]["measured"] == "85%"
    assert got["add_rms_norm, of the copy bandwidth"]["met"] is True
    assert got["block pass without gradient"]["measured"] == "0.380 ms"
    assert got["block pass, of the matrix ceiling"]["measured"] == "66%"  # 2e11 / 0.38e-3 / 8e14
    assert got["block pass, faster than eager"] | {"value": 0} == {
        "what": "block pass, faster than eager",
        "expected": ">= 1.5 x",
        "measured": "1.32 x",
        "value": 0,
        "met": False,
    }
    assert got["one Sudoku answer, 16 segments, cuda"]["met"] is None
    assert got["training step"]["met"] is None and got["training step"]["measured"] == "not measured"


@pytest.mark.parametrize(
    ("answer", "launches", "measured", "met"),
    [(3.9e-3, (2, 2), ("3.90 ms", "1.00"), True), (4.1e-3, (2, 3), ("4.10 ms", "1.33"), False)],
)
def test_the_answer_and_its_launches_are_those_of_the_cuda_backend(answer, launches, measured, met):
    cycles, module = launches
    by_name = {
        ("Sudoku answer", "cuda"): timing("Sudoku answer", "cuda", answer),
        ("Sudoku answer", "triton"): timing("Sudoku answer", "triton", 1.0),
        ("recurrent_cycles batch 1", "cuda"): timing("recurrent_cycles batch 1", "cuda", 1e-4, launches=cycles),
        ("reasoning_module batch 1", "cuda"): timing("reasoning_module batch 1", "cuda", 1e-4, launches=module),
    }
    rows = [compare(target, by_name, {}) for target in TARGETS[-2:]]
    assert tuple(row["measured"] for row in rows) == measured and {row["met"] for row in rows} == {met}


def test_failures_and_a_process_that_ended_early_are_in_the_table(tmp_path):
    one = Run(tmp_path, Options(quick=True, dry_run=True), "cpu")
    lines = [
        {"workload": "ceilings", "copy_bytes_per_s": 1e12, "matmul_flops_per_s": 1e14},
        {"workload": "swiglu", "backend": "all", "status": "started"},
        timing("swiglu", "triton", 2e-6, bytes=1e6, dtype="bfloat16", low=1e-6, high=3e-6, mode="graph"),
        {"workload": "swiglu", "dtype": "bfloat16", "backend": "torch.compile", "status": "wrong: errors [0.1]"},
        {"workload": "rope_attention", "backend": "all", "status": "started"},
    ]
    file = tmp_path / "timings.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one.read_timings()
    one.part("nothing", 1)  # a part that raises is a failed part
    assert one.result["parts"]["nothing"]["status"] == "failed"
    text = (tmp_path / "results.md").read_text()
    assert "| timings | swiglu | bfloat16 | triton | 2.0 | 1.0, 3.0 | graph | 500 | 50% | | |" in text
    assert "| timings | swiglu | bfloat16 | torch.compile | wrong: errors [0.1] |" in text
    assert "| timings | rope_attention |  | all | failed: its process ended" in text


def test_processes_that_a_command_starts_end_with_its_time(tmp_path, monkeypatch):
    one = Run(tmp_path, Options(quick=True, dry_run=True), "cpu")
    program = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print('child', p.pid, flush=True); p.wait()"
    )

    class Process(subprocess.Popen):
        """Times out as soon as it has printed what it started."""

        def wait(self, timeout=None):
            while timeout is not None:
                if (tmp_path / "log").read_text().count("\n") == 2:  # the command, and its output
                    raise subprocess.TimeoutExpired(self.args, timeout)
                assert self.poll() is None
                time.sleep(0.01)
            return super().wait()

    monkeypatch.setattr(subprocess, "Popen", Process)
    code, output = one.call("log", [sys.executable, "-c", program], 60, {})
    assert code is None
    stat = Path(f"/proc/{output.split()[-1]}/stat")
    deadline = time.monotonic() + 60  # it has been killed, but it may take a moment to disappear

    def is_running():
        try:
            return stat.read_text().split(")")[-1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    while is_running():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_the_requirements_of_hrm_the_ops_are_still_timed(tmp_path, monkeypatch):
    def no_pydantic(tiny):
        raise ModuleNotFoundError("No module named 'pydantic'")

    monkeypatch.setattr(suites, "models", no_pydantic)
    monkeypatch.setattr(timings, "measure_ceilings", lambda device, tiny: {})
    file = tmp_path / "timings.jsonl"
    arguments = ["timings", str(file), "--tiny", "--device", "cpu", "--dtype", "float32", "--seconds", "-1"]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):  # a second process adds nothing
        assert timings.main() == 0
        ceilings, models, *rows = map(json.loads, file.read_text().splitlines())
        assert models["status"] == "failed: No module named 'pydantic'"
        assert len(rows) == len(list(suites.ops(tiny=True)))
        assert {row["status"] for row in rows} == {"skipped: out of time"}


def test_the_first_parts_end_within_three_minutes():
    first = [name for name, part in PARTS.items() if part.is_first]
    assert first == [*PARTS][:7] and first[0] == "tuning" and first[-1] == "memcheck"
    assert {PARTS[name].minutes for name in first} == {3}


def test_a_block_pass_is_timed_on_every_path(monkeypatch):
    """The choice of the path is what the tuning table would say."""
    from hrm_kernels import tuning

    seen = []
    run = suites.on_path("whole_row", lambda x: seen.append(tuning.choose(x.device, x.dtype, 8)))
    monkeypatch.setattr(suites, "on_backend", lambda backend, op: seen.append(backend) or op)
    run(torch.ones(1))
    assert seen == ["triton", "whole_row"]
    (many, single) = suites.block()
    assert (many.batch, single.batch) == (384, 1)
    assert {"library", "fused"} < set(suites.paths(many, "cuda")) and not suites.paths(many, "cpu")
    assert "cuDNN" in suites.peers(suites.long_attention()[0], "cuda")


def test_wheels_for_a_machine_without_a_network(tmp_path, capsys):
    pins = wheels.pinned()
    names = {pin.partition("==")[0] for pin in pins}
    assert {"apache-tvm-ffi", "pydantic", "pydantic-core", "omegaconf", "hypothesis"} <= names and "torch" not in names
    assert not [line for line in wheels.not_installed() if not line.startswith("triton")]
    assert wheels.main(["--python", "3.12"]) == 0
    assert "--python-version 3.12" in capsys.readouterr().out
    for pin in pins:
        name, number = pin.split("==")
        tags = "cp312-cp312-manylinux_2_17_x86_64" if name == "pydantic-core" else "py3-none-any"
        (tmp_path / f"{name.replace('-', '_')}-{number}-{tags}.whl").touch()
    (tmp_path / next(path for path in tmp_path.iterdir() if path.name.startswith("omegaconf"))).unlink()
    assert wheels.main(["--python", "3.12", "--check", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("omegaconf==") and line.endswith(f"no wheel in {tmp_path}")
    assert wheels.main(["--python", "3.11", "--check", str(tmp_path)]) == 1
    assert "is not for Python 3.11 on Linux x86-64" in capsys.readouterr().out

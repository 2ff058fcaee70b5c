"""Tables, plots and comparisons show the numbers of the files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_benchmark.cli
from PIL import Image

from bench.report import __main__ as report
from bench.report import sections, text
from bench.report.runs import read

ROOT = Path(__file__).parents[2]
SIZES = [(1, 82), (8, 82), (1, 901)]
CEILINGS = {"matmul_flops_per_s": 9e10, "fma_flops_per_s": 1e11, "copy_bytes_per_s": 1e10}


def benchmark(suite, workload, candidate, median, **info):
    common = {"kind": workload, "batch": 1, "positions": 82, "bytes": 1e6, "operations": 0, "times_eager": None}
    common |= {"bound": None, "of_ceiling": None, "puzzles": None, "solved": None, "segments": None, "launches": None}
    stats = {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "rounds": 9}
    info = common | {"suite": suite, "workload": workload, "candidate": candidate} | info
    return {"fullname": f"{suite}[{workload}: {candidate}]", "extra_info": info, "stats": stats}


def write(path, benchmarks, **head):
    machine = {
        "cpu": {"model": "A CPU", "threads": 2, "isa": ["avx2"]},
        "versions": {"torch": "2.13.0", "python": "3.11", "triton": None},
        "gpus": [],
    }
    common = {"device": "cpu", "dtype": "float32", "full": False, "ceilings": CEILINGS, "unmeasured": []}
    content = {
        "machine_info": machine,
        "datetime": "2026-11-24T20:00:00",
        "commit_info": {"id": "abcdef0123456789", "dirty": False},
        "bench": common | head,
        "benchmarks": benchmarks,
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    def segment(candidate, B, S, median, ratio):
        info = {"times_eager": ratio, "operations": 2e9, "batch": B, "positions": S}
        info |= {"bound": "arithmetic", "of_ceiling": 0.5}
        return benchmark("segment", f"segment {B} x {S}", candidate, median, **info)

    rows = [segment(c, B, S, t * B, r) for c, t, r in (("eager", 0.1, 1.0), ("cpu", 0.05, 2.0)) for B, S in SIZES]
    rows.append(
        benchmark(
            "solve",
            "solve 64",
            "cpu, halting",
            0.5,
            times_eager=3.5,
            puzzles=64,
            solved=0.75,
            segments=4.5,
            bytes=0,
            disturbed=True,
        )
    )
    for kind in ("one_step", "full"):
        for cycles in (2, 4):
            peak = 5e6 if kind == "one_step" else 5e6 * cycles
            rows.append(benchmark("memory", kind, "cpu", 1.0, kind=kind, cycles=cycles, peak_bytes=peak))
    rows.append(benchmark("import", "import hrm", "ours", 1.25))
    missing = [
        {"suite": "ops", "workload": "swiglu", "candidate": "Liger", "reason": "needs a GPU", "failed": False}
    ] * 2
    missing.append({"suite": "ops", "workload": "norm", "candidate": "cpu", "reason": "wrong: off", "failed": True})
    write(tmp_path / "bench.json", rows, unmeasured=missing)
    (tmp_path / "other.json").write_text("[1, 2]")  # not a file of this suite
    return tmp_path


def test_tables_and_pictures(folder, capsys):
    assert report.main([str(folder)]) == 0
    text = (folder / "tables.md").read_text()
    assert "A CPU, 2 threads (avx2); float32; torch 2.13.0, Python 3.11; 2026-11-24, commit abcdef012." in text
    assert "multiply-adds in registers 100 GFLOP/s, memory 10.0 GB/s (read plus written)" in text
    assert (
        "| segment 1 x 82 | eager | 100 ms | 90.0 ms, 110 ms | 1.00 | 50% (arithmetic) | 20 GFLOP/s | 1.00 MB |" in text
    )
    assert "| segment 1 x 901 | cpu | 50.0 ms |" in text  # a row names its workload if the row before has another
    assert "| solve 64 | cpu, halting | 500 ms | 450 ms, 550 ms; disturbed | 3.50 |  |  |  | 128 | 75.0% |" in text
    assert "| one-step | cpu | 5.00 MB | 5.00 MB |" in text and "| full | cpu | 10.0 MB | 20.0 MB |" in text
    assert "| import hrm | 1.25 s | 1.12 s, 1.38 s |" in text
    assert "- Liger (2 workloads): needs a GPU\n- cpu (ops: norm): wrong: off\n" in text
    for name in ("ratios.png", "roofline.png", "cost.png", "memory.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value, shown", [(2.5, "2.50 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 µs"), (1e-7, "0.100 µs")]
)
def test_times_have_three_digits(value, shown):
    assert text.seconds(value) == shown


def test_only_what_is_between_the_markers_changes(tmp_path, folder):
    page, (begin, end) = tmp_path / "page.md", sections.markers("bench.report")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert sections.section(page, "bench.report") == "old" and sections.section(page, "other") is None
    assert sections.fill(page, "bench.report", report.page_section(read(folder), folder, [folder / "cost.png"], page))
    shown = page.read_text()
    assert shown.startswith(f"before\n{begin}\nA CPU") and shown.endswith(f"![cost](cost.png)\n{end}\nafter\n")
    assert "old" not in shown and "| segment 8 x 82 | eager | 800 ms |" in shown
    page.write_text("no markers")
    assert not sections.fill(page, "bench.report", "new") and page.read_text() == "no markers"


def test_a_folder_without_measurements(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert f"bench.report: {tmp_path} has no measurements; make some: pytest bench/" in capsys.readouterr().err
    assert report.main([str(tmp_path / "no.json")]) == 2


def run_suite(which, *options):
    command = [sys.executable, "-m", "pytest", "bench/bench_ops.py", "-k", which, "--benchmark-only", *options]
    # pytest-benchmark measures nothing in a worker of pytest-xdist, which it knows from the environment
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["OMP_NUM_THREADS"] = "1"
    command += ["-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_the_suite_writes_what_the_report_reads(tmp_path):
    file = tmp_path / "bench.json"
    done = run_suite("SparseSignSGD or (swiglu and not backward)", f"--benchmark-json={file}")
    assert done.returncode == 0, done.stdout
    rows, (head,) = read(file)
    measured = {(row["kind"], row["candidate"]): row for row in rows}
    assert {("swiglu", "eager"), ("SparseSignSGD", "eager")} <= measured.keys()
    row = measured["swiglu", "eager"]
    assert row["times_eager"] == 1 and row["bound"] == "memory" and row["of_ceiling"] > 0
    assert max(row["error"]) < 1e-6 and row["rounds"] >= 5 and 1e-6 < row["median"] < 1
    assert head["ceilings"]["copy_bytes_per_s"] > 1e8
    known = {"candidate": "Liger", "reason": "runs on NVIDIA GPUs only", "failed": False}
    assert known.items() <= head["unmeasured"][0].items()


def scaled(path, factor):
    """A copy of a run's file in which every time is ``factor`` times as long."""
    content = json.loads(path.read_text())
    for one in content["benchmarks"]:
        one["stats"] |= {key: factor * one["stats"][key] for key in ("min", "max", "mean", "median", "q1", "q3", "iqr")}
    copy = path.with_name(f"times-{factor}.json")
    copy.write_text(json.dumps(content))
    return copy


def test_pytest_benchmark_compares_committed_runs(tmp_path, monkeypatch, capsys):
    old = tmp_path / "old.json"
    old.write_bytes((ROOT / "bench/results/cpu-2026-11-27/bench.json").read_bytes())
    files = [str(old), str(scaled(old, 1.5))]
    monkeypatch.setattr(
        sys, "argv", ["pytest-benchmark", "compare", *files, "--between=median", "-k", "swiglu and cpu"]
    )
    pytest_benchmark.cli.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test_op[")]
    assert [line.partition("  ")[0] for line in lines] == [
        "test_op[swiglu 8 x 82: cpu]",
        "test_op[swiglu 8 x 82 + backward: cpu]",
    ]
    assert all(line.endswith("+50.0%") for line in lines)


@pytest.mark.slow
def test_a_run_that_is_slower_than_a_former_run_fails(tmp_path):
    former = tmp_path / "former.json"
    assert run_suite("SparseSignSGD and eager", f"--benchmark-json={former}").returncode == 0
    compared = f"--benchmark-compare={scaled(former, 1e-3)}"
    done = run_suite("SparseSignSGD and eager", compared, "--benchmark-compare-fail=median:10%")
    assert done.returncode != 0 and "Performance has regressed" in done.stdout + done.stderr

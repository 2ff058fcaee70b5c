"""Tables, plots and comparisons are made of the files' numbers; the plan of counted ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench import compare, plan, report

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
    found = {
        "machine_info": machine,
        "datetime": "2026-11-24T20:00:00",
        "commit_info": {"id": "abcdef0123456789", "dirty": False},
        "bench": common | head,
        "benchmarks": benchmarks,
    }
    path.write_text(json.dumps(found))


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
    (tmp_path / "other.json").write_text("[1, 2]")  # not of this suite
    return tmp_path


def test_tables_and_pictures(folder, capsys):
    assert report.main([str(folder)]) == 0
    text = (folder / "tables.md").read_text()
    assert "A CPU, 2 threads (avx2); float32; torch 2.13.0, Python 3.11; 2026-11-24, commit abcdef012." in text
    assert "multiply-adds in registers 100 GFLOP/s, memory 10.0 GB/s (read plus written)" in text
    assert (
        "| segment 1 x 82 | eager | 100 ms | 90.0 ms, 110 ms | 1.00 | 50% (arithmetic) | 20 GFLOP/s | 1.00 MB |" in text
    )
    assert "| segment 1 x 901 | cpu | 50.0 ms |" in text  # the name again where another one stood before
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
    assert report.seconds(value) == shown


def test_only_what_is_between_the_markers_changes(tmp_path, folder):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    rows, heads = report.read(folder)
    assert report.fill(readme, report.summary(rows, heads, folder))
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\nA CPU") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and "| segment 8 x 82 | eager | 800 ms |" in text
    readme.write_text("no markers")
    assert not report.fill(readme, "new") and readme.read_text() == "no markers"


def test_a_folder_without_measurements(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert f"bench.report: {tmp_path} has no measurements; make some: pytest bench/" in capsys.readouterr().err
    assert compare.main([str(tmp_path / "no.json"), str(tmp_path)]) == 2


def test_slower_is_beyond_the_spread(tmp_path, capsys):
    old = [benchmark("ops", "a", "cpu", 1.0), benchmark("ops", "b", "cpu", 1.0), benchmark("ops", "c", "cpu", 1.0)]
    new = [benchmark("ops", "a", "cpu", 1.15), benchmark("ops", "b", "cpu", 1.5), benchmark("ops", "c", "cpu", 0.5)]
    write(tmp_path / "old.json", old)
    write(
        tmp_path / "new.json", [*new, benchmark("ops", "d", "cpu", 1.0)], ceilings=CEILINGS | {"copy_bytes_per_s": 5e9}
    )
    assert compare.main([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "note: the ceiling copy_bytes_per_s was 1e+10, now 5e+09",
        "slower: ops, b, cpu: 1.00 s -> 1.50 s (1.50 x)",
        "faster: ops, c, cpu: 1.00 s -> 500 ms (0.50 x)",
        "3 benchmarks in both, 1 slower, 1 faster; 0 in OLD alone, 1 in NEW alone",
    ]
    assert compare.main([str(tmp_path / "old.json"), str(tmp_path / "old.json")]) == 0


def test_plan_of_the_published_sudoku_recipe(capsys):
    assert plan.main(["--task", "sudoku", "--gpus", "8", "--batch", "768"]) == 0
    text = capsys.readouterr().out
    assert "768 rows of 82 positions on 8 GPUs, 26,042 steps; 27.28 M parameters" in text
    config = plan.HRMConfig(seq_len=81, vocab_size=11, puzzle_emb_ndim=512)
    model, gpu = plan.Model(config), plan.GPUS["H200"]
    step = plan.training_step(model, gpu, 1, 384, fused=True, reached=True)
    assert step.arithmetic == pytest.approx(64 * 384 * 82 * (2 * 3_407_872 + 4 * 82 * 512) / 790e12)
    assert model.pass_bytes(True) == pytest.approx(20e3, rel=0.05) and model.pass_bytes(False) == 36 * 1024
    assert plan.all_reduce_bytes(model, 1, 384) == 0
    assert plan.all_reduce_bytes(model, 2, 1) == 4 * 27_275_266 + 4 * 512 + 8
    # every GPU has as many rows: only the all-reduce grows
    assert plan.training_step(model, gpu, 8, 3072, True, True).arithmetic == step.arithmetic


def test_plan_of_a_million_identifiers_and_of_too_few_rows(capsys):
    assert plan.main(["--task", "arc-1", "--gpus", "8", "--identifiers", "1000000"]) == 0
    assert "- puzzle embedding: 2.05 GB (0.256 GB with puzzle_emb_sharded=true)" in capsys.readouterr().out
    assert plan.main(["--gpus", "1000"]) == 2
    assert "expected at least one GPU, and a row for each" in capsys.readouterr().err


@pytest.mark.slow
def test_the_suite_writes_what_the_report_reads(tmp_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pytest", "bench/bench_ops.py", "-k", "SparseSignSGD or (swiglu and not backward)"]
    command += ["--benchmark-only", f"--benchmark-json={file}", "-q", "-p", "no:cacheprovider"]
    # a worker of pytest-xdist says so in the environment, and pytest-benchmark then measures nothing
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    rows, (head,) = report.read(file)
    found = {(row["kind"], row["candidate"]): row for row in rows}
    assert {("swiglu", "eager"), ("SparseSignSGD", "eager")} <= found.keys()
    row = found["swiglu", "eager"]
    assert row["times_eager"] == 1 and row["bound"] == "memory" and row["of_ceiling"] > 0
    assert max(row["error"]) < 1e-6 and row["rounds"] >= 5 and 1e-6 < row["median"] < 1
    assert head["ceilings"]["copy_bytes_per_s"] > 1e8
    known = {"candidate": "Liger", "reason": "runs on NVIDIA GPUs only", "failed": False}
    assert known.items() <= head["unmeasured"][0].items()


@pytest.mark.slow
def test_one_step_memory_is_flat_where_full_grows():
    def peak(gradient, cycles):
        command = [sys.executable, "-m", "bench.memory", "eager", gradient, str(cycles)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
        )
        return json.loads(done.stdout)["peak_bytes"]

    flat, grows = [peak("one_step", n) for n in (2, 8)], [peak("full", n) for n in (2, 8)]
    assert flat[1] < 1.3 * flat[0] and grows[1] > 2 * grows[0]

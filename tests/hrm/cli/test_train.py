"""``hrm train`` as a user runs it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hrm.cli import main
from hrm.data.format import SetBuilder, write_dataset
from hrm.training.recipes import recipes

TINY = ["global_batch_size=8", "device=cpu", "lr_warmup_steps=2", "arch.hidden_size=16", "arch.num_heads=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rng, folder, builder = np.random.default_rng(0), tmp_path_factory.mktemp("cli") / "data", SetBuilder()
    for _ in range(16):
        inputs = rng.integers(1, 5, 9)
        builder.add_example(inputs, inputs)
        builder.end_puzzle()
        builder.end_group()
    write_dataset(folder, {"train": {"all": builder}, "test": {"all": builder}}, vocab_size=5, seq_len=9)
    return folder


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hrm", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process, which is faster: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hrm", "train", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        return (exit_.value.code or 0, *capsys.readouterr())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield call
    torch.set_num_threads(threads)


def steps_logged(out: Path) -> list[int]:
    with (out / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def stop_once_training(process: subprocess.Popen[str], out: Path, number: signal.Signals) -> tuple[str, str]:
    deadline = time.monotonic() + 90
    while not ((out / "metrics.csv").exists() and len(steps_logged(out)) >= 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    return process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_resumed_run_is_equal_to_the_bit(data, tmp_path, run, number):
    recipe, settings = ["demo", "--data", str(data)], [*TINY, "epochs=100000", "log_every=1", "eval_interval=null"]
    arguments = [*recipe, *settings]
    process = start(*arguments, "resume=false", "--out", str(tmp_path / "a"))
    out, err = stop_once_training(process, tmp_path / "a", number)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopping: this step is finished and saved" in err
    (checkpoint,) = sorted((tmp_path / "a/checkpoints").iterdir())[-1:]
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert f"interrupted at step {step}; checkpoint {checkpoint}" in out
    assert f"to continue: hrm train {' '.join(recipe)} --out {tmp_path / 'a'} {' '.join(settings)} --resume" in out
    assert steps_logged(tmp_path / "a") == list(range(1, step + 1))

    last = f"max_steps={step + 2}"
    code, out, err = run(*arguments, "--out", str(tmp_path / "a"), "--resume", last)
    assert code == 0 and f"resumed from {checkpoint}, step {step}" in out, err
    code, out, err = run(*arguments, f"out={tmp_path / 'b'}", last)
    assert code == 0, err
    name = f"checkpoints/step_{step + 2:08d}"
    for file in ("model", "carry", "optimizer_adam"):
        a, b = (load_file(tmp_path / folder / name / f"{file}.safetensors") for folder in "ab")
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_training_evaluates_and_reports(data, tmp_path, run):
    out = tmp_path / "run"
    # an epoch has two steps; the log has one line in between and one at the end
    arguments = ["demo", "--data", str(data), "--out", str(out), *TINY, "epochs=10", "eval_interval=5", "log_every=10"]
    process = start(*arguments)
    printed, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    lines = printed.splitlines()
    assert lines[0] == f"data {data} (16 examples), run {out}"
    assert "16 groups of puzzles, 20 steps of 8 rows on 1 x cpu" in lines[1]
    assert any(line.startswith("step 20/20  loss ") for line in lines)
    assert sum(line.startswith(("step 10: test exact_accuracy", "step 20: test exact_accuracy")) for line in lines) == 2
    assert lines[-1] == f"done at step 20; checkpoint {out}/checkpoints/step_00000020"
    assert steps_logged(out) == [10, 20]
    assert json.loads((out / "training.json").read_text())["model"]["hidden_size"] == 16

    code, printed, err = run(*arguments)
    assert code == 2 and printed == ""
    assert err == f"hrm: {out} is not empty; add --resume to continue that run, or choose another --out\n"


def test_seeds_end_with_a_table(data, tmp_path, run):
    arguments = ["demo", "--data", str(data), "--out", str(tmp_path / "runs"), *TINY, "max_steps=1", "--seeds", "2"]
    code, out, err = run(*arguments)
    assert (code, err) == (0, ""), err
    table = [line.split() for line in out.splitlines()[-5:]]
    assert [row[0] for row in table] == ["seed", "0", "1", "mean", "spread"]
    assert table[1][1] == "1" and table[1][-1] == "limit" and (tmp_path / "runs/seed-1/checkpoints").is_dir()
    (tmp_path / "runs/seed-1/metrics.csv").unlink()
    (tmp_path / "runs/seed-1/metrics.csv").mkdir()
    code, out, _ = run(*arguments, "--resume", "max_steps=2")
    assert code == 1 and "seed 1 failed: " in out.splitlines()[-1]


def test_help_lists_the_recipes(run):
    code, out, err = run("--help")
    words = set(re.findall(r"[\w-]+", re.sub(r"-\s*\n[│\s]*", "-", out)))  # lines break after a hyphen
    assert (code, err) == (0, "") and set(recipes()) <= words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "data=x"], "no recipe 'nothing'; expected arc-1, arc-2, arc6, demo"),
        (["demo", "data=nowhere"], "data folder nowhere does not exist; make one"),
        (["demo"], "no data folder; add --data DIR, as in: hrm train demo --data data/sudoku"),
        (["demo", "--data", "x", "data=y"], "data has two values, x and y; give one"),
        (
            ["demo", "--data", "x", "--batch-size", "8", "global_batch_size=16"],
            "global_batch_size has two values, 8 and",
        ),
        (["demo", "data=x", "batch_size=3"], "unknown key batch_size; did you mean global_batch_size?"),
        (["demo", "data=x", "epochs=many"], "epochs: Input should be a valid integer"),
        (["demo", "data={data}", "arch.num_heads=3"], "hidden_size 64 is not a multiple of num_heads 3"),
        (["demo", "data={data}", "arch.expansion=.inf"], "expansion: Input should be a finite number (got inf)"),
        (["demo", "data={data}", "resume=true"], "holds no checkpoint to resume from"),
        (["demo", "data={data}", "device=quantum"], "device quantum is not supported"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(data, tmp_path, monkeypatch, run, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*(argument.format(data=data) for argument in arguments))
    assert code == 2
    assert err.startswith("hrm: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""The examples run, reach the accuracy that they assert, and need public names only."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hrm
from hrm.data import TASKS

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTS = {
    "adam_atan2": "accuracy: ",
    "custom_task": "of 100",
    "ddp_loop": "the loaded checkpoint goes on exactly like the original",
    "fixed_point_cell": "accuracy: ",
    "nonogram": "of 100",
    "patch_a_model": "level: reasoning_module",
    "with_accelerate": "after 40 steps",
    "with_lightning": "after 40 steps",
}
NEEDS = {"with_accelerate": "accelerate", "with_lightning": "lightning"}
SLOW = {"ddp_loop", "nonogram"}  # its processes import torch each; it trains for 2,000 steps
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def run(name, *arguments, launcher=()):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, *launcher, EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert PRINTS[name] in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES])
def test_example(name):
    needed = NEEDS.get(name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    run(name)


@pytest.mark.slow
def test_ddp_loop_compiled():
    run("ddp_loop", "--compile", "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, arguments, launcher",
    [
        ("with_lightning", ("--processes", "2"), ()),
        ("with_accelerate", (), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")),
    ],
)
def test_two_processes(name, arguments, launcher):
    pytest.importorskip(NEEDS[name])
    done = run(name, *arguments, launcher=launcher)
    assert "(2 processes)" in done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_public_names_are_enough(path):
    text = path.read_text()
    assert set(re.findall(r"^(?:from|import) (hrm\b\S*)", text, re.M)) <= {"hrm"}
    assert set(re.findall(r"\bhrm\.(\w+)", text)) <= set(hrm.__all__)
    assert set(re.findall(r"^from (hrm_kernels\S*) import", text, re.M)) <= {
        "hrm_kernels",
        "hrm_kernels.fixed_point",
        "hrm_kernels.nn",
        "hrm_kernels.optim",
    }


def test_a_task_takes_less_than_60_lines():
    assert len((EXAMPLES / "custom_task.py").read_text().splitlines()) < 60


def test_nonograms_are_read_written_and_checked():
    program = runpy.run_path(str(EXAMPLES / "nonogram.py"))
    try:
        task, (inputs, labels) = program["Nonogram"](), program["puzzles"](np.random.default_rng(0), 20)
    finally:
        del TASKS["nonogram"]
    for puzzle, answer in zip(inputs, labels):
        assert (task.parse(task.format(puzzle)) == puzzle).all() and (task.parse(task.format(answer)) == answer).all()
        assert task.check(puzzle, answer) is None and task.check(puzzle, puzzle) is not None
        wrong = answer.copy()
        wrong[14] = 5 - wrong[14]  # a filled cell becomes empty, or the other way round
        assert re.match(r"row 1 has \[.*\], and its clues are", task.check(puzzle, wrong))
    assert task.format(task.parse("1 1,2,0,4/1,2,1 1,3")).startswith("1 1,2,0,4/1,2,1 1,3=")
    for text in ("1,2", "1 1,2,0,4/1,2,1 1,3=####", "2 2,2,0,4/1,2,1 1,3"):
        with pytest.raises(hrm.InputError, match="nonogram|do not fit"):
            task.parse(text)

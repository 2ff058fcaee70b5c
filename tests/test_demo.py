"""`make demo` does what the README promises: from data to a solved puzzle, and two puzzles of 9 x 9."""

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrm.data.sudoku import Sudoku

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text().splitlines()


def demo_commands() -> list[list[str]]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    return [shlex.split(line.partition("hrm ")[2]) for line in lines if line.startswith("\t$(BIN)/hrm ")]


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "hrm", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_shows_the_commands_of_the_makefile():
    shown = [shlex.split(line) for line in README if line.startswith("hrm ")]
    assert len(demo_commands()) == 6
    assert all(["hrm", *command] in shown for command in demo_commands())


def test_the_demo_puzzle_is_held_out(tmp_path):
    data, _, _, solve, *_ = demo_commands()
    run(data, tmp_path)
    task = Sudoku(4)
    puzzle = task.parse(solve[2])
    folder = tmp_path / "demo" / "data"
    assert (np.load(folder / "test" / "all__inputs.npy") == puzzle).all(1).any()
    assert not (np.load(folder / "train" / "all__inputs.npy") == puzzle).all(1).any()


def test_the_shipped_model_solves_a_newspaper_puzzle_and_a_hard_one(tmp_path):
    *_, newspaper, hard = demo_commands()
    (tmp_path / "demo").mkdir()
    assert "\nvalid; " in run(newspaper, tmp_path)
    assert "\nvalid; " in run(hard, tmp_path)
    with Image.open(tmp_path / "demo" / "sudoku9.gif") as picture:
        assert picture.n_frames >= 2


@pytest.mark.slow
def test_the_demo_learns_to_95_percent_and_solves_its_puzzle(tmp_path):
    data, train, evaluate, solve, *_ = demo_commands()
    run(data, tmp_path)
    run(train, tmp_path)
    with (tmp_path / "demo" / "run" / "evaluation.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert float(last["exact_accuracy"]) >= 0.95
    assert "exact_accuracy" in run(evaluate, tmp_path)
    assert "valid" in run(solve, tmp_path).splitlines()[-1]
    with Image.open(tmp_path / "demo" / "solution.gif") as picture:
        assert picture.n_frames >= 2

import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from hrm.cli import main
from hrm.data.format import open_dataset
from hrm.data.maze import Maze
from hrm.data.maze import generate as generate_mazes
from hrm.data.puzzles import row_keys
from hrm.data.sudoku import Sudoku, solve

HARD = Path(__file__).parents[2] / "data" / "sudoku_hard.csv"


Result = namedtuple("Result", ["returncode", "stdout", "stderr"])


def as_process(*arguments: object) -> Result:
    """Run ``hrm data`` as a user does."""
    command = [sys.executable, "-m", "hrm", "data", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HARD.parents[2], timeout=120)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def hrm_data(monkeypatch, capsys):
    """Run it in this process, without the start of an interpreter, which takes most of the time."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["hrm", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return Result(stop.value.code or 0, *capsys.readouterr())

    return call


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("hrm: ")
    for part in parts:
        assert part in result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_a_seed_repeats_its_sudokus_and_existing_data_is_kept(tmp_path, hrm_data):
    arguments = ("sudoku", "--size", 4, "--train", 60, "--test", 20, "--augment", 3, "--out")
    first, again = as_process(*arguments, tmp_path / "a"), hrm_data(*arguments, tmp_path / "b")
    assert first.returncode == again.returncode == 0, first.stderr
    assert (
        first.stdout
        == f"{tmp_path / 'a'}: sudoku 4 x 4, train 240 puzzles in 60 groups, test 20 puzzles in 20 groups\n"
    )
    assert first.stderr == ""
    before = contents(tmp_path / "a")
    assert before == contents(tmp_path / "b")
    train, test = open_dataset(tmp_path / "a", "train"), open_dataset(tmp_path / "a", "test")
    assert (train.metadata.task, train.metadata.vocab_size, train.metadata.num_puzzle_identifiers) == ("sudoku", 6, 1)
    for split, puzzles in ((train, 240), (test, 20)):
        (one,) = split.sets
        assert len(one.inputs) == puzzles
        assert (solve(np.asarray(one.inputs)).answers == one.labels).all()
        assert (solve(np.asarray(one.inputs)).counts == 1).all()
    keys = [set(row_keys(np.asarray(split.sets[0].inputs)).tolist()) for split in (train, test)]
    assert not keys[0] & keys[1] and len(keys[1]) == 20
    refused = as_process(*arguments, tmp_path / "a")
    replaced = hrm_data("sudoku", "--size", 4, "--train", 5, "--test", 5, "--force", "--out", tmp_path / "b")
    assert_one_line(refused, f"{tmp_path / 'a'} exists already", "--force")
    assert contents(tmp_path / "a") == before
    assert replaced.returncode == 0
    assert open_dataset(tmp_path / "b", "train").num_examples == 5


def test_sudoku_from_a_folder_and_from_one_file(tmp_path, hrm_data):
    (tmp_path / "csv").mkdir()
    lines = HARD.read_text().splitlines(keepends=True)
    (tmp_path / "csv" / "train.csv").write_text("".join(lines[:151]))
    (tmp_path / "csv" / "test.csv").write_text("".join([lines[0], *lines[151:]]))
    recipe = as_process("sudoku", "--csv", tmp_path / "csv", "--train", 10, "--augment", 4, "--out", tmp_path / "a")
    held_out = hrm_data("sudoku", "--csv", HARD, "--test", 30, "--min-rating", 100, "--out", tmp_path / "b")
    assert recipe.returncode == held_out.returncode == 0, recipe.stderr + held_out.stderr
    questions = {
        split: [line.split(",")[1] for line in text] for split, text in (("train", lines[1:151]), ("test", lines[151:]))
    }
    task = Sudoku(9)
    (train,), (test,) = open_dataset(tmp_path / "a", "train").sets, open_dataset(tmp_path / "a", "test").sets
    assert train.group_indices.tolist() == list(range(0, 51, 5))
    originals = [task.format(board) for board in train.inputs[::5]]
    assert set(originals) <= set(questions["train"]) and len(set(originals)) == 10
    assert task.solves(np.asarray(train.inputs), np.asarray(train.labels)).all()
    assert [task.format(board) for board in test.inputs] == questions["test"]
    hard = {line.split(",")[1] for line in lines[1:] if int(line.split(",")[3]) >= 100}
    parts = [
        [task.format(board) for board in open_dataset(tmp_path / "b", split).sets[0].inputs]
        for split in ("train", "test")
    ]
    assert len(parts[1]) == 30 and sorted(parts[0] + parts[1]) == sorted(hard)


def test_generated_and_read_mazes(tmp_path, hrm_data):
    mazes, task = generate_mazes(12, 9, np.random.default_rng(0)), Maze(9)
    lines = ["question,answer"] + [
        f"{task.format(inputs)},{task.format(labels)}"
        for inputs, labels in zip(mazes.inputs, mazes.labels, strict=True)
    ]
    (tmp_path / "mazes.csv").write_text("\n".join(lines) + "\n")
    made = as_process(
        "maze", "--size", 9, "--train", 8, "--test", 4, "--min-path", 20, "--augment", "--out", tmp_path / "a"
    )
    read = hrm_data("maze", "--csv", tmp_path / "mazes.csv", "--test", 4, "--out", tmp_path / "b")
    assert made.returncode == read.returncode == 0, made.stderr + read.stderr
    assert made.stdout.endswith("maze 9 x 9, train 64 puzzles in 8 groups, test 4 puzzles in 4 groups\n")
    dataset = open_dataset(tmp_path / "a", "train")
    (train,) = dataset.sets
    assert (dataset.metadata.task, dataset.metadata.vocab_size) == ("maze", 6)
    assert task.solves(np.asarray(train.inputs), np.asarray(train.labels)).all()
    assert ((train.labels == 5).sum(1) >= 19).all()
    boards = [open_dataset(tmp_path / "b", split).sets[0].inputs for split in ("train", "test")]
    assert [len(board) for board in boards] == [8, 4]
    assert sorted(row_keys(np.concatenate(boards)).tolist()) == sorted(row_keys(mazes.inputs).tolist())


def test_malformed_rows_stop_or_are_counted(tmp_path, hrm_data):
    rows = HARD.read_text().splitlines()
    solution = rows[4].split(",")[2]
    rows[2] = rows[2].replace(".", "a", 1)
    # All cells of two digits are blank: the digits can be swapped, so there are two solutions.
    rows[4] = f"several,{solution.replace('1', '.').replace('2', '.')},{solution},0"
    (tmp_path / "bad.csv").write_text("\n".join(rows[:40]) + "\n")
    (tmp_path / "several.csv").write_text("\n".join([rows[0], *rows[3:40]]) + "\n")
    common = ("sudoku", "--test", 10, "--out", tmp_path / "out", "--csv")
    stopped = as_process(*common, tmp_path / "bad.csv")
    several = hrm_data(*common, tmp_path / "several.csv")
    assert_one_line(stopped, f"{tmp_path / 'bad.csv'}:3: question has 'a' at row", "--skip-bad")
    assert_one_line(several, f"{tmp_path / 'several.csv'}:3: the question has several solutions, expected one")
    (tmp_path / "rating.csv").write_text(f"{rows[0]}\n{rows[1].rpartition(',')[0]},{10**30}\n")
    huge = hrm_data(*common, tmp_path / "rating.csv")
    assert_one_line(huge, f"{tmp_path / 'rating.csv'}:2: rating is '{10**30}', expected a number")
    (tmp_path / "rating.csv").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "several.csv"]
    skipped = hrm_data(*common, tmp_path / "bad.csv", "--skip-bad")
    unchecked = hrm_data(
        "sudoku", "--test", 10, "--out", tmp_path / "all", "--csv", tmp_path / "several.csv", "--no-check-unique"
    )
    assert skipped.returncode == unchecked.returncode == 0, skipped.stderr + unchecked.stderr
    assert skipped.stderr.splitlines()[0] == "hrm: 2 malformed rows left out:"
    assert f"{tmp_path / 'bad.csv'}:5: the question has several solutions" in skipped.stderr
    sizes = [
        sum(open_dataset(tmp_path / name, split).num_examples for split in ("train", "test")) for name in ("out", "all")
    ]
    assert sizes == [37, 37]


def test_options_that_exclude_each_other_or_are_out_of_range(tmp_path, hrm_data, monkeypatch):
    monkeypatch.setattr("hrm.data.maze.generator._BARREN", 100)
    (tmp_path / "csv").mkdir()
    out = ("--out", tmp_path / "out")
    calls = {
        ("sudoku", *out, "--size", 5): ["size 5 is not known; choose 4, 6, 8, 9, 10, 12 or 16"],
        ("sudoku", *out, "--size", 0): ["size 0 is not known; choose 4, 6, 8, 9, 10, 12 or 16"],
        ("sudoku", *out, "--train", 0): ["'--train'"],
        ("sudoku", *out, "--csv", tmp_path / "csv"): ["has no CSV file; expected train.csv or train.csv.gz"],
        ("sudoku", *out, "--csv", tmp_path / "no.csv"): ["no.csv is missing"],
        ("sudoku", *out, "--csv", HARD): ["is one file; add --test N"],
        ("sudoku", *out, "--csv", HARD, "--test", 200): ["leaves none to train on; lower --test"],
        ("sudoku", *out, "--csv", HARD, "--size", 4): ["puzzles of size 9, --size asks for 4"],
        ("sudoku", *out, "--csv", HARD, "--hub", "a/b"): ["--csv and --hub exclude each other; give one"],
        ("sudoku", *out, "--csv", HARD, "--test", 5, "--min-rating", 99999): ["no usable puzzle of rating 99999"],
        ("maze", *out, "--size", 9, "--min-path", 80): ["80 steps or more", "lower --min-path"],
        ("maze", *out, "--csv", HARD, "--max-path", 8): [
            "--min-path, --max-path, --max-branch and --loops are for generated mazes"
        ],
        ("maze", *out, "--csv", HARD, "--test", 5): ["sudoku_hard.csv:2: question has"],
    }
    for arguments, parts in calls.items():
        assert_one_line(hrm_data(*arguments), *parts)
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub(tmp_path, hrm_data, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = hrm_data("sudoku", "--out", tmp_path / "out", "--hub", "nobody/nothing")
    assert_one_line(result, "hub dataset nobody/nothing cannot be reached and train.csv is not in the cache")
    assert_one_line(hrm_data("sudoku", "--out", tmp_path / "out", "--hub", "a/b/c"), "'a/b/c' is not a hub name")


def test_puzzles_from_the_hub(tmp_path, hrm_data, monkeypatch):
    calls = []

    def download(repo, filename, repo_type):
        calls.append((repo, filename, repo_type))
        return str(HARD)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    result = hrm_data("sudoku", "--out", tmp_path / "out", "--hub", "a/b", "--train", 5, "--test", 7)
    assert result.returncode == 0, result.stderr
    assert calls == [("a/b", "train.csv", "dataset"), ("a/b", "test.csv", "dataset")]
    assert [open_dataset(tmp_path / "out", split).num_examples for split in ("train", "test")] == [5, 7]
    assert open_dataset(tmp_path / "out", "train").metadata.vocab_size == 11


def test_force_replaces_only_data_folders(tmp_path, hrm_data):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    arguments = ("sudoku", "--size", 4, "--train", 5, "--test", 5, "--force", "--out")
    assert_one_line(hrm_data(*arguments, tmp_path / "home"), "home is not a data folder")
    assert_one_line(hrm_data(*arguments, tmp_path / "file"), "file is a file")
    assert [path.read_text() for path in (tmp_path / "file", tmp_path / "home" / "thesis.txt")] == ["precious"] * 2
    data = tmp_path / "data"
    assert hrm_data(*arguments, data).returncode == hrm_data(*arguments, data).returncode == 0
    (data / "train" / ".DS_Store").write_bytes(b"written by macOS")
    assert hrm_data(*arguments, data).returncode == 0
    (data / "train" / "thesis.txt").write_text("precious")
    assert_one_line(hrm_data(*arguments, data), "data is not a data folder (it holds train/thesis.txt), and --force")
    assert (data / "train" / "thesis.txt").read_text() == "precious"


def test_the_current_folder_is_refused_before_the_work(tmp_path, hrm_data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hrm.data.sudoku.generate", None)
    assert_one_line(hrm_data("sudoku", "--out", "."), ". is a mount point or the folder you are in")
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path, call):
    code, out, err = call("data", "sudoku", "--out", tmp_path / "out", "--size", 5, "--debug")
    assert (code, out) == (2, "") and err.startswith("Traceback (most recent call last):")
    assert re.search(r"\nhrm.errors.InputError: .*choose 4, 6, 8, 9, 10, 12 or 16", err)

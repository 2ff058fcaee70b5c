"""``hrm data arc``: in a new process if the whole output is checked, else in this one, which saves the imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hrm import cli
from hrm.data.format import open_dataset

ROOT = Path(__file__).parents[3]
TASKS = json.loads((ROOT / "tests" / "data" / "arc_cases.json").read_text())["tasks"]


def hrm_data_arc(*arguments):
    command = [sys.executable, "-m", "hrm", "data", "arc", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def in_process(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["hrm", "data", "arc", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code


@pytest.fixture
def tasks(tmp_path):
    """Two training tasks and two evaluation tasks in the layout of the ARC repository."""
    for subset, names in (("training", list(TASKS)[:2]), ("evaluation", list(TASKS)[2:])):
        (tmp_path / "data" / subset).mkdir(parents=True)
        for name in names:
            (tmp_path / "data" / subset / f"{name}.json").write_text(json.dumps(TASKS[name]))
    return tmp_path / "data"


def test_a_folder_of_tasks(tasks, tmp_path):
    out = tmp_path / "arc"
    done = hrm_data_arc("--out", out, "--folder", tasks, "--augment", 2)
    # 4 + 1 and 3 + 1 pairs of training tasks, 4 and 3 demonstrations of evaluation tasks, three variants each.
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{out}: arc\n  train: 4 tasks, 12 puzzles, 48 examples\n  test: 2 tasks, 6 puzzles, 6 examples\n"
    )
    assert open_dataset(out, "train").num_examples == 48 and open_dataset(out, "test").num_examples == 6
    assert json.loads((out / "test_puzzles.json").read_text()) == {name: TASKS[name] for name in list(TASKS)[2:]}


def test_the_only_subset_is_tested_on(tmp_path, monkeypatch):
    options = ("--version", 2, "--subsets", "evaluation", "--augment", 0)
    assert in_process(monkeypatch, "--out", tmp_path / "arc", *options) == 0
    assert open_dataset(tmp_path / "arc", "test").metadata.total_groups == 120
    puzzles = json.loads((tmp_path / "arc" / "test_puzzles.json").read_text())
    assert open_dataset(tmp_path / "arc", "test").identifiers() == ["<blank>", *puzzles]


def test_tasks_by_name(tasks, tmp_path, monkeypatch):
    options = ("--tasks", "25ff71a9, 0d3d703e", "--version", 1, "--augment", 0)
    assert in_process(monkeypatch, "--out", tmp_path / "arc", *options) == 0
    assert set(json.loads((tmp_path / "arc" / "test_puzzles.json").read_text())) == {"25ff71a9", "0d3d703e"}
    (name, *_), options = TASKS, ("--folder", tasks, "--augment", 0)
    assert in_process(monkeypatch, "--out", tmp_path / "own", *options, "--tasks", name) == 0
    assert set(json.loads((tmp_path / "own" / "test_puzzles.json").read_text())) == {name}


def test_the_subset_test_of_kaggle_is_used_only_if_named(tmp_path, monkeypatch):
    (tmp_path / "kaggle").mkdir()
    for subset, names in (("evaluation", list(TASKS)[:1]), ("test", list(TASKS)[1:2])):
        file = tmp_path / "kaggle" / f"arc-agi_{subset}_challenges.json"
        file.write_text(json.dumps({name: TASKS[name] for name in names}))
    options = ("--kaggle", tmp_path / "kaggle", "--augment", 0)
    for index, more in enumerate([(), ("--test-subset", "test"), ("--subsets", "test")]):
        out = tmp_path / str(index)
        assert in_process(monkeypatch, "--out", out, *options, *more) == 0
        tested = list(TASKS)[0] if index == 0 else list(TASKS)[1]
        assert list(json.loads((out / "test_puzzles.json").read_text())) == [tested]
        assert open_dataset(out, "train").metadata.total_groups == (2 if index == 1 else 1)


def test_bad_input_is_one_line_and_leaves_nothing(tasks, tmp_path, monkeypatch, capsys):
    out = tmp_path / "arc"
    bad = tasks / "training" / "bad.json"
    bad.write_text(json.dumps({"train": [{"input": [[0]], "output": [[0, 11]]}], "test": []}))
    done = hrm_data_arc("--out", out, "--folder", tasks)
    assert (done.returncode, done.stdout) == (2, "")
    where = f"hrm: {bad}: task bad, demonstration 1, output"
    assert done.stderr == f"{where}: row 1 has the colour 11; expected an integer from 0 to 9\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]

    options = ("--out", out, "--folder", tasks, "--skip-bad", "--augment", 0)
    assert in_process(monkeypatch, *options) == 0
    captured = capsys.readouterr()
    assert "train: 4 tasks" in captured.out
    assert captured.err.startswith("hrm: 1 malformed tasks left out:\n") and "the colour 11" in captured.err

    assert in_process(monkeypatch, *options) == 2
    assert f"hrm: {out} exists already; choose another folder, or pass --force" in capsys.readouterr().err
    assert open_dataset(out, "test").num_examples == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--subsets", "training,concept"), "no subset concept; expected evaluation, training"),
        (
            ("--subsets", "training", "--test-subset", "evaluation"),
            "--test-subset names evaluation, which --subsets leaves out",
        ),
        (("--tasks", "no-such-task"), "no task no-such-task in evaluation, training; --tasks takes names of tasks"),
        (("--kaggle", "absent"), "absent has no *_challenges.json; expected a folder with Kaggle's unpacked files"),
    ],
)
def test_options_that_do_not_fit(options, message, tasks, tmp_path, monkeypatch, capsys):
    assert in_process(monkeypatch, "--out", tmp_path / "arc", "--folder", tasks, *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert not (tmp_path / "arc").exists()


def test_files_of_file_managers_and_archivers_are_not_read(tasks, tmp_path, monkeypatch, capsys):
    apple = b"\0\5\x16\7\0\2\0\0Mac OS X        \xb0\xff"
    for name in ("training/._x.json", "._y.json", "__MACOSX/data/._z.json", ".ipynb_checkpoints/a.json"):
        (tasks / name).parent.mkdir(parents=True, exist_ok=True)
        (tasks / name).write_bytes(apple)
    kaggle = tmp_path / "kaggle"
    kaggle.mkdir()
    (kaggle / "arc-agi_concept_challenges.json").write_text(json.dumps({"other": TASKS[list(TASKS)[0]]}))
    (kaggle / "._arc-agi_concept_challenges.json").write_bytes(apple)
    options = ("--out", tmp_path / "arc", "--folder", tasks, "--kaggle", kaggle, "--augment", 0)
    assert in_process(monkeypatch, *options) == 0
    assert "train: 5 tasks" in capsys.readouterr().out
    assert in_process(monkeypatch, *options, "--force", "--subsets", ".ipynb_checkpoints") == 2
    assert "expected concept, evaluation, training" in capsys.readouterr().err


def test_a_test_that_is_also_a_training_example_is_reported(tmp_path, monkeypatch, capsys):
    pairs = [{"input": [[digit]], "output": [[digit, digit]]} for digit in range(6)]
    files = {
        "training/aa": {"train": pairs[:2], "test": pairs[2:3]},
        "evaluation/bb": {"train": pairs[4:5], "test": [pairs[3], pairs[2]]},
        "evaluation/cc": {"train": pairs[5:6], "test": [{"input": [[1]]}, {"input": [[1]], "output": [[1]]}]},
    }
    for name, task in files.items():
        (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(task))
    options = ("--out", tmp_path / "arc", "--folder", tmp_path / "tasks", "--augment", 0)
    assert in_process(monkeypatch, *options) == 0
    assert capsys.readouterr().err == (
        "hrm: 2 test puzzles are also training puzzles:\n"
        "  test 2 of bb is test 1 of aa\n  test 1 of cc is demonstration 2 of aa\n"
    )
    assert in_process(monkeypatch, *options, "--subsets", "evaluation", "--force") == 0
    assert capsys.readouterr().err == ""


def test_task_files_of_re_arc(tmp_path, monkeypatch, capsys):
    pairs = [{"input": [[digit]], "output": [[digit, digit]]} for digit in range(4)]
    (tmp_path / "re_arc" / "tasks").mkdir(parents=True)
    (tmp_path / "re_arc" / "metadata.json").write_text('{"aa": {"n_generations": 4}}')
    (tmp_path / "re_arc" / "tasks" / "aa.json").write_text(json.dumps(pairs))
    options = ("--folder", tmp_path / "re_arc", "--augment", 0, "--out")
    assert in_process(monkeypatch, *options, tmp_path / "tested") == 0  # the only subset is tested on
    assert [open_dataset(tmp_path / "tested", split).num_examples for split in ("train", "test")] == [3, 1]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "bb.json").write_text(json.dumps({"train": pairs[:1], "test": pairs[1:2]}))
    capsys.readouterr()
    assert in_process(monkeypatch, *options, tmp_path / "trained", "--folder", tmp_path / "evaluation") == 0
    assert [open_dataset(tmp_path / "trained", split).num_examples for split in ("train", "test")] == [5, 1]
    (tmp_path / "re_arc" / "tasks" / "aa.json").write_text(json.dumps(pairs[:1]))
    assert in_process(monkeypatch, *options, tmp_path / "short") == 2
    assert "task aa is [{" in (err := capsys.readouterr().err) and "or a list of two or more pairs (re-arc)" in err


def test_task_files_may_have_a_byte_order_mark(tmp_path, monkeypatch):
    name, task = next(iter(TASKS.items()))
    for encoding in ("utf-8-sig", "utf-16"):
        folder = tmp_path / encoding
        folder.mkdir()
        (folder / f"{name}.JSON").write_text(json.dumps(task), encoding)
        assert in_process(monkeypatch, "--folder", folder, "--augment", 0, "--out", folder / "arc") == 0
        assert json.loads((folder / "arc" / "test_puzzles.json").read_text()) == {name: task}

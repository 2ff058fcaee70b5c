"""ARC from tasks to a submission: data, training, votes, pictures, and adapting to a task that training never saw."""

import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrm.data.arc import PALETTE, Arc
from hrm.data.format import open_dataset

PAGE = Path(__file__).parents[3] / "docs" / "tutorials" / "arc6.md"
TINY = (
    *("epochs=2", "max_steps=2", "lr_warmup_steps=1", "arch.hidden_size=16", "arch.puzzle_emb_ndim=16"),
    *("arch.halt_max_steps=2", "global_batch_size=4", "eval_interval=null"),
)


def no_test_is_trained_on(folder):
    """No training example of a variant is also its test, wherever it is on the board."""
    examples = {}
    for split in ("train", "test"):
        dataset = open_dataset(folder, split)
        arc, one = Arc(math.isqrt(dataset.metadata.seq_len)), dataset.sets[0]
        identifiers = np.repeat(one.puzzle_identifiers, np.diff(one.puzzle_indices)).tolist()
        rows = zip(identifiers, one.inputs, one.labels, strict=True)
        examples[split] = {
            (identifier, arc.format(question), arc.format(answer)) for identifier, question, answer in rows
        }
    return examples["train"].isdisjoint(examples["test"])


@pytest.fixture
def tasks(tmp_path):
    """Two tasks of one rule, mirrored grids of 2 x 2: ``known`` with two tests, and ``new``."""
    grids = [[[a, b], [b, b]] for a in (1, 2, 3) for b in (4, 5)]
    pairs = [{"input": grid, "output": [row[::-1] for row in grid]} for grid in grids]
    (tmp_path / "tasks").mkdir()
    for name, task in (
        ("known", {"train": pairs[:2], "test": pairs[2:4]}),
        ("new", {"train": pairs[3:], "test": pairs[:1]}),
    ):
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(task))
    return tmp_path / "tasks"


def test_from_tasks_to_a_submission(tasks, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--folder", tasks, "--side", 3, "--augment", 2)
    for name, folder in (("known", "data"), ("new", "unseen")):
        assert call("data", "arc", *options, "--tasks", name, "--out", folder)[0] == 0
        assert no_test_is_trained_on(folder)
    code, _, err = call("train", "arc6", "--data", "data", "--out", "run", *TINY)
    assert code == 0, err
    code, _, err = call("adapt", "run", "--data", "unseen", "--out", "adapted", "--steps", 2, "--batch-size", 4)
    assert code == 0, err
    for model, folder, tests in (("run", "data", {"known": 2}), ("adapted", "unseen", {"new": 1})):
        code, text, err = call("eval", model, "--data", folder, "--out", f"{model}-results", "--pictures", "--json")
        assert code == 0 and "ARC/pass@2" in json.loads(text), err
        submission = json.loads(Path(f"{model}-results/submission.json").read_text())
        assert {name: len(attempts) for name, attempts in submission.items()} == tests
        assert [path.stem for path in Path(f"{model}-results/pictures").iterdir()] == list(tests)
    with Image.open("run-results/pictures/known.png") as picture:
        colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in picture.convert("RGB").getcolors(1 << 16)}
    assert {PALETTE[colour] for colour in (1, 2, 4, 5)} <= colours and PALETTE[9] not in colours


def solved(data, results):
    """The tasks all of whose tests one of the two attempts solves."""
    tasks, submission = (
        json.loads(Path(file).read_text()) for file in (f"{data}/test_puzzles.json", f"{results}/submission.json")
    )
    return {
        name
        for name, task in tasks.items()
        if all(
            test["output"] in attempts.values() for test, attempts in zip(task["test"], submission[name], strict=True)
        )
    }


@pytest.mark.slow
def test_the_tutorial_solves_tasks(call, tmp_path, monkeypatch):
    """Its commands, as they stand on the page."""
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S):
        for command in block.replace("\\\n", " ").splitlines():
            code, _, err = call(*shlex.split(command)[1:])
            assert code == 0, err
    assert no_test_is_trained_on("arc/data") and no_test_is_trained_on("arc/unseen")
    assert solved("arc/data", "arc/results"), "of eight tasks none is solved"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--pictures needs a folder to write to; add --out DIR"),
        (("--out", "results", "--split", "train"), "--pictures draws the test split of ARC data, and "),
        (("--out", "results", "--max-examples", 1), "--pictures needs the votes of all examples"),
    ],
)
def test_pictures_of_what_is_no_submission(options, message, tasks, call, tmp_path):
    data = tmp_path / "data"
    assert call("data", "arc", "--folder", tasks, "--side", 3, "--augment", 0, "--out", data)[0] == 0
    code, _, err = call("eval", "sudoku4", "--data", data, "--pictures", *options)
    assert code == 2 and message in err

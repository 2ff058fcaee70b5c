import json

import numpy as np
import pytest
import torch

from hrm import HRM, HRMConfig, save
from hrm.data.format import SetBuilder, write_dataset
from hrm.data.sudoku import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained ``model``, and ``data`` without a train split."""
    folder = tmp_path_factory.mktemp("analyze")
    puzzles, builder = generate(12, 4, np.random.default_rng(0)), SetBuilder()
    builder.add_puzzles(puzzles.inputs, puzzles.labels)
    write_dataset(folder / "data", {"test": {"all": builder}}, vocab_size=6, seq_len=16, task="sudoku")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1, "halt_max_steps": 2}
    save(HRM(HRMConfig(seq_len=16, vocab_size=6, forward_dtype="float32", **sizes)), folder / "model", task="sudoku")
    return folder


def test_analyze(folder, call, tmp_path):
    arguments = ("analyze", folder / "model", "--data", folder / "data", "--out", tmp_path, "--boards", 1)
    code, _, err = call(*arguments)
    assert code == 2 and "has no split 'train'" in err  # for the baselines
    code, text, err = call(*arguments, "--baseline-steps", 0)
    assert code == 0 and "12 puzzles" in text and "participation ratio, untrained: z_H" in text, err
    assert json.loads((tmp_path / "analysis.json").read_text())["baselines"] == {}
    code, _, err = call(*arguments, "--baseline-steps", 0)
    assert code == 2 and "report.html exists already" in err
    assert call(*arguments, "--baseline-steps", 0, "--force", "--max-steps", 3)[0] == 0
    assert len(json.loads((tmp_path / "analysis.json").read_text())["accuracy_by_segment"]) == 3


def test_a_report_that_cannot_be_written_is_refused_before_the_work(folder, call, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ("analyze", folder / "nowhere", "--data", folder / "data", "--baseline-steps", 0, "--out")
    code, _, err = call(*arguments, tmp_path / "file")
    assert code == 2 and f"{tmp_path / 'file'}: a file, where a folder is needed" in err
    (tmp_path / "board-2.gif").write_text("precious")
    code, _, err = call(*arguments, tmp_path, "--boards", 2)
    assert code == 2 and "board-2.gif exists already; choose another --out, or pass --force" in err
    code, _, err = call(*arguments, tmp_path, "--boards", 1)
    assert code == 2 and "nowhere does not exist" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data {}/data --baseline-steps 0 --puzzles 0", "Invalid value for '--puzzles'"),
        ("--data {}/data --baseline-steps -1", "Invalid value for '--baseline-steps'"),
        ("--data {}/data --boards x", "Invalid value for '--boards'"),
        ("--puzzles 1", "Missing option '--data'"),
        ("--data {}/nowhere", "does not exist"),
        ("--data {}/data --seed -1", "Invalid value for '--seed'"),
        (
            "--data {}/data --baseline-steps 0 --puzzle-emb some",
            "Invalid value for '--puzzle-emb'",
        ),
    ],
)
def test_bad_input(folder, call, tmp_path, arguments, message):
    options = arguments.format(folder).split()
    code, _, err = call("analyze", folder / "model", *options, "--out", tmp_path / "x")
    assert code == 2 and message in err and not (tmp_path / "x").exists()

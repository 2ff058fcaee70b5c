import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hrm import HRM, HRMConfig, load, save
from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.data.sudoku import generate
from hrm.inference.evaluate import evaluate

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def run(*arguments, launcher=(sys.executable, "-m", "hrm")):
    command = [*launcher, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


def write_data(folder, count=10, size=4, identifiers=("<blank>", "a")):
    puzzles = generate(count, size, np.random.default_rng(0))
    builder = SetBuilder()
    for question, answer in zip(puzzles.inputs, puzzles.labels):
        builder.add_example(question, answer)
        builder.end_puzzle(1)
        builder.end_group()
    write_dataset(
        folder,
        {"test": {"all": builder}},
        vocab_size=size + 2,
        seq_len=size * size,
        identifiers=identifiers,
        task="sudoku",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``model`` for 4 x 4 Sudokus with two identifiers, ``data`` that fits, ``nine`` and ``three`` that do not."""
    folder = tmp_path_factory.mktemp("eval")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_heads": 2,
        "H_layers": 1,
        "L_layers": 1,
        "expansion": 1,
        "halt_max_steps": 3,
        "puzzle_emb_ndim": 32,
    }
    model = HRM(HRMConfig(seq_len=16, vocab_size=6, num_puzzle_identifiers=2, forward_dtype="float32", **sizes))
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
        model.inner.puzzle_emb.weights.normal_()
    save(model, folder / "model", task="sudoku")
    write_data(folder / "data")
    write_data(folder / "nine", size=9, count=2)
    write_data(folder / "three", identifiers=("<blank>", "a", "b"))
    return folder


def without_speed(metrics):
    return {
        name: pytest.approx(value, rel=1e-5)
        for name, value in metrics.as_dict().items()
        if name != "puzzles_per_second"
    }


def test_json_has_the_metrics_of_the_function(folder, tmp_path):
    expected = evaluate(load(folder / "model"), open_dataset(folder / "data", "test"), batch_size=4, max_steps=2)
    done = run(
        "eval", folder / "model", "--data", folder / "data", "--max-steps", 2, "--json", "--out", tmp_path / "out"
    )
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads(done.stdout)
    assert {name: value for name, value in metrics.items() if name != "puzzles_per_second"} == without_speed(expected)
    assert (metrics["count"], metrics["steps"]) == (10, 2)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert np.load(tmp_path / "out" / "predictions.npz")["predictions"].shape == (10, 16)


def test_files_are_replaced_only_with_force(folder, tmp_path, call):
    arguments = ("eval", folder / "model", "--data", folder / "data", "--out", tmp_path, "--json")
    (tmp_path / "predictions.npz").write_text("precious")
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and "predictions.npz exists already" in err
    assert (tmp_path / "predictions.npz").read_text() == "precious"
    assert call(*arguments, "--force")[0] == 0
    assert len(np.load(tmp_path / "predictions.npz")["q_halt"]) == 10


def test_table(folder, call):
    code, out, err = call("eval", folder / "model", "--data", folder / "data", "--max-examples", 5)
    assert (code, err) == (0, "")
    rows = {line.split("│")[2].strip(): line.split("│")[3].strip() for line in out.splitlines() if "│" in line}
    assert rows["count"] == "5" and rows["steps"] == "3.00"
    expected = evaluate(load(folder / "model"), open_dataset(folder / "data", "test"), batch_size=5, max_examples=5)
    assert rows["accuracy"] == f"{expected.accuracy:.2%}"


def test_a_path_that_looks_like_markup_of_rich(folder, call, tmp_path):
    link = tmp_path / "[" / "b]x:x:"
    link.parent.mkdir()
    link.symlink_to(folder / "data")
    code, out, err = call("eval", folder / "model", "--data", link)
    assert (code, err) == (0, "") and "/[/b]x:x:(test)" in "".join(out.split())


def test_default_segments_of_scale(folder, call):
    arguments = ("scale", folder / "model", "--data", folder / "data", "--json")
    for options, segments in ((["--segments", 2], [2]), ([], [1, 2, 3])):
        code, out, err = call(*arguments, *options)
        assert code == 0 and [one["segments"] for one in json.loads(out)["cells"]] == segments, err


def test_a_line_for_each_rule_of_selection(folder, call):
    arguments = ("eval", folder / "model", "--data", folder / "data", "--trajectories", 3, "--halt", "q")
    code, out, err = call(*arguments, "--json")
    metrics = json.loads(out)
    names = {f"exact_accuracy/{rule}" for rule in ("check", "vote", "q", "residual", "any")}
    assert (code, err) == (0, "") and names < set(metrics) and metrics["steps"] >= 3
    assert max(metrics[name] for name in names) == metrics["exact_accuracy/any"]
    plain = json.loads(call(*arguments[:4], "--halt", "q", "--json")[1])
    assert names.isdisjoint(plain)
    assert "exact accuracy, chosen by residual" in call(*arguments)[1]


def test_processes_share_the_work(folder, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hrm")
    arguments = ("eval", folder / "model", "--data", folder / "data", "--batch-size", 4, "--json", "--out", tmp_path)
    done = run(*arguments, launcher=torchrun)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    expected = evaluate(
        load(folder / "model"), open_dataset(folder / "data", "test"), batch_size=10, out=tmp_path / "one"
    )
    assert {k: v for k, v in json.loads(line).items() if k != "puzzles_per_second"} == without_speed(expected)
    ours, theirs = np.load(tmp_path / "one" / "predictions.npz"), np.load(tmp_path / "predictions.npz")
    for name in ("inputs", "predictions", "early_steps", "puzzle_identifiers"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_allclose(ours["q_halt"], theirs["q_halt"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("eval --data {}/nine", "seq_len 81 and the checkpoint 16"),
        (
            "eval --data {}/three",
            "3 puzzle identifiers and the checkpoint's puzzle_emb 2 rows; load it with --puzzle-emb keep",
        ),
        ("eval --data {}/none", "none does not exist"),
        ("eval --data {}/data --split train", "has no split 'train' (it has test)"),
        ("eval --data {}/data dta=x", "unexpected extra argument"),
        ("eval {}/data", "Missing option '--data'; see hrm eval --help"),
        ("eval --data=~/no-such-folder", f"{Path.home() / 'no-such-folder'} does not exist"),
        ("eval --data {}/data --out " + __file__, f"{__file__}: a file, where a folder is needed"),
        (
            "eval --data {}/data --puzzle-emb some",
            "Invalid value for '--puzzle-emb'",
        ),
        ("eval --data {}/data --batch-size 0", "Invalid value for '--batch-size'"),
        ("eval --data {}/data --device abacus", "abacus"),
        ("scale --data {}/data --trajectories 2 --seed -1", "Invalid value for '--seed'"),
        ("scale --data {}/none --trajectories 2 --out " + __file__, f"{__file__}: a file, where a folder is needed"),
        ("scale --data {}/data --trajectories 2 --segments 0", "--segments: got 0, expected 1 or more"),
        ("scale --data {}/none --segments 1 --max-steps 2", "No such option: --max-steps"),
        (
            "eval --data {}/none --select q,luck",
            "select is 'q,luck' with the unknown rule 'luck'; expected",
        ),
        ("scale --data {}/none --select q,q", "a rule in it occurs twice"),
    ],
)
def test_bad_input(folder, call, arguments, message):
    command, *options = arguments.format(folder).split()
    code, out, err = call(command, folder / "model", *options)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("hrm: ") and err.count("\n") == 1


def test_bad_input_as_a_process(folder):
    done = run("eval", folder / "missing", "--data", folder / "data")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "missing does not exist" in done.stderr


@pytest.mark.parametrize("choice", ["keep", "mean", "zero"])
def test_a_puzzle_embedding_with_another_number_of_rows(folder, call, choice):
    dataset = open_dataset(folder / "three", "test")
    model = load(folder / "model", puzzle_emb=choice, num_puzzle_identifiers=3)
    expected = evaluate(model, dataset, batch_size=10)
    code, out, _ = call("eval", folder / "model", "--data", folder / "three", "--puzzle-emb", choice, "--json")
    assert code == 0
    metrics = json.loads(out)
    assert {k: v for k, v in metrics.items() if k != "puzzles_per_second"} == without_speed(expected)

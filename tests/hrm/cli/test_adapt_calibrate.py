import json
import shutil

import numpy as np
import pytest
import torch

from hrm import HRM, HRMConfig, load, save
from hrm.data.format import SetBuilder, write_dataset
from hrm.data.sudoku import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``model`` with two puzzle identifiers, ``data`` with three."""
    folder = tmp_path_factory.mktemp("adapt")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1, "halt_max_steps": 3}
    model = HRM(
        HRMConfig(
            seq_len=16, vocab_size=6, num_puzzle_identifiers=2, puzzle_emb_ndim=32, forward_dtype="float32", **sizes
        )
    )
    save(model, folder / "model", task="sudoku")
    splits = {}
    for split in ("train", "test"):
        puzzles, builder = generate(8, 4, np.random.default_rng(0)), SetBuilder()
        builder.add_puzzles(puzzles.inputs, puzzles.labels, identifier=2)
        splits[split] = {"all": builder}
    write_dataset(folder / "data", splits, vocab_size=6, seq_len=16, identifiers=list("abc"), task="sudoku")
    return folder


def test_adapt_calibrate_eval(folder, call, tmp_path):
    data, out = ("--data", folder / "data"), tmp_path / "adapted"
    code, text, err = call("adapt", folder / "model", *data, "--out", out, "--steps", 3, "--batch-size", 4)
    assert code == 0 and "token loss" in text, err
    old, new = load(folder / "model").state_dict(), load(out).state_dict()
    changed = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
    assert changed == {"inner.puzzle_emb.weights"} and len(new["inner.puzzle_emb.weights"]) == 3
    code, text, err = call("adapt", folder / "model", *data, "--out", out)
    assert code == 2 and "exists already" in err
    code, text, err = call("eval", out, *data, "--halt", "calibrated", "--json")
    assert code == 2 and "run hrm calibrate" in err
    code, text, err = call("calibrate", out, *data)
    assert code == 0 and (out / "halting.json").is_file() and "| calibrated |" in text, err
    assert text.endswith(f" in {out / 'halting.json'}; use it with --halt calibrated\n")
    chosen = json.loads((out / "halting.json").read_text())["chosen"]
    code, text, err = call("eval", out, *data, "--halt", "calibrated", "--json")
    assert code == 0 and json.loads(text)["steps"] == pytest.approx(chosen["mean_steps"]), err
    code, text, err = call(
        "scale", out, *data, "--segments", "1,2", "--trajectories", "1,2", "--json", "--out", tmp_path / "s"
    )
    assert code == 0 and len(json.loads(text)["cells"]) == 4, err
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"scaling.json", "scaling.md", "scaling.png"}


def test_an_adapted_model_accepts_only_its_own_puzzles(folder, call, tmp_path):
    ours, others = folder / "data", tmp_path / "others"
    shutil.copytree(ours, others)
    (others / "identifiers.json").write_text('["a", "b", "other"]')
    code, _, err = call("adapt", folder / "model", "--data", ours, "--out", tmp_path / "adapted", "--steps", 1)
    assert code == 0, err
    code, _, err = call("eval", tmp_path / "adapted", "--data", others)
    assert code == 2 and f"{others} names other puzzle identifiers (identifiers.json) than the checkpoint" in err
    losses = []
    for data, puzzle_emb in ((ours, "strict"), (others, "keep"), (others, "mean"), (others, "zero")):
        code, text, err = call(
            "eval", tmp_path / "adapted", "--data", data, "--json", "--batch-size", "8", "--puzzle-emb", puzzle_emb
        )
        assert code == 0, err
        losses.append(json.loads(text)["lm_loss"])
    assert losses[0] == losses[1] and len(set(losses)) == 3
    code, _, err = call("adapt", tmp_path / "adapted", "--data", others, "--out", tmp_path / "again", "--steps", 1)
    assert code == 0, err
    assert call("eval", tmp_path / "again", "--data", others)[0] == 0
    assert call("eval", tmp_path / "again", "--data", ours)[0] == 2


def test_a_threshold_in_another_folder_is_printed_as_a_margin(folder, call, tmp_path):
    arguments = (folder / "model", "--data", folder / "data", "--puzzle-emb", "mean")
    code, text, err = call("calibrate", *arguments, "--out", tmp_path)
    halt = text.rpartition("use it with --halt ")[2].strip()
    stored = json.loads((tmp_path / "halting.json").read_text())
    assert code == 0 and halt == f"margin:{stored['threshold']}", err
    code, text, err = call("eval", *arguments, "--halt", halt, "--json")
    assert code == 0 and json.loads(text)["steps"] == pytest.approx(stored["chosen"]["mean_steps"]), err


def test_puzzle_emb_of_analyze(folder, call, tmp_path):
    arguments = ("--data", folder / "data", "--puzzle-emb", "keep", "--baseline-steps", 0, "--boards", 1)
    code, text, err = call("analyze", folder / "model", *arguments, "--out", tmp_path)
    assert code == 0 and "8 puzzles" in text, err
    assert json.loads((tmp_path / "analysis.json").read_text())["model"]["num_puzzle_identifiers"] == 3


def test_force_replaces_only_models(folder, call, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    arguments = ("--data", folder / "data", "--out", tmp_path, "--steps", 1, "--force")
    code, text, err = call("adapt", "nowhere", *arguments)  # refused before anything is loaded
    assert (code, text) == (2, "")
    assert "is not a model folder (it holds thesis.txt), and --force replaces nothing" in err
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    (tmp_path / "thesis.txt").rename(tmp_path / "halting.md")
    code, text, err = call("adapt", folder / "model", *arguments)
    assert code == 0 and sorted(one.name for one in tmp_path.iterdir()) == ["config.json", "model.safetensors"], err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("scale {}/model --data {}/data --segments steps:8", "--segments: got 'steps:8', expected integers"),
        ("scale {}/model --data {}/data --trajectories 0", "--trajectories: got 0, expected 1 or more"),
        (
            "scale {}/model --data {}/data --segments 1 --trajectories 1,x",
            "--trajectories: got '1,x', expected integers",
        ),
        ("scale {}/model --data {}/data --noise 1", "noise changes no answer of a single trajectory; give"),
        ("eval {}/model --data {}/data --halt never", "halt is 'never'"),
        ("scale {}/model --data {}/data --halt never", "halt is 'never'"),
        ("calibrate {}/model --data {}/data --loss 2", "loss is 2.0, expected"),
        ("calibrate {}/model --loss 0", "Missing option '--data'; see hrm calibrate --help"),
        ("calibrate {}/model --data {}/none --out {}/model/config.json", "config.json: a file, where a folder"),
        ("calibrate {}/model --data {}/data", "3 puzzle identifiers and the checkpoint's puzzle_emb 2 rows"),
        (
            "calibrate sudoku4 --data {}/none",
            "sudoku4 comes with the package, which keeps its own halting.json; add --out DIR",
        ),
        ("adapt {}/model --data {}/data --out {}/new --seed -1", "Invalid value for '--seed'"),
        ("adapt {}/model --data {}/data", "Missing option '--out'; see hrm adapt --help"),
        ("adapt {}/model --data {}/data --out {}/new --steps x", "Invalid value for '--steps'"),
        ("adapt {}/model --data {}/data --out {}/new --steps 0", "Invalid value for '--steps'"),
        ("adapt {}/model --data {}/data --out {}/new --init some", "Invalid value for '--init'"),
    ],
)
def test_bad_input(folder, call, command, message):
    code, out, err = call(*(part.format(folder) for part in command.split()))
    assert code == 2 and message in err and err.startswith("hrm: ")
    assert not (folder / "new").exists()

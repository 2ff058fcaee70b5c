"""Recipes, overrides and what is said of wrong ones."""

from pathlib import Path

import pytest
import torch

from hrm.data.format import open_dataset
from hrm.errors import InputError
from hrm.training.config import load_config, recipes


def test_recipes_are_the_published_table():
    names = ("epochs", "global_batch_size", "lr", "puzzle_emb_lr", "weight_decay", "puzzle_emb_weight_decay")
    names += ("lr_min_ratio", "loss")
    stablemax = (1.0, "stablemax_cross_entropy")
    table = {
        "arc-1": (100_000, 768, 1e-4, 1e-2, 0.1, 0.1, *stablemax),
        "arc-2": (100_000, 768, 1e-4, 1e-2, 0.1, 0.1, *stablemax),
        "sudoku-extreme-1k": (20_000, 768, 1e-4, 1e-4, 1.0, 1.0, *stablemax),
        "sudoku-extreme-1k-laptop": (20_000, 384, 7e-5, 7e-5, 1.0, 1.0, *stablemax),
        "maze-hard-1k": (20_000, 768, 1e-4, 1e-4, 1.0, 1.0, *stablemax),
        "sudoku-extreme-full": (100, 2304, 3e-4, 3e-4, 0.1, 0.1, 0.1, "softmax_cross_entropy"),
    }
    assert set(recipes()) == {*table, "demo"}
    for name, values in table.items():
        config = load_config(name, ["data=x"])
        assert tuple(getattr(config, key) for key in names) == values
        assert (config.lr_warmup_steps, config.beta1, config.beta2) == (2000, 0.9, 0.95)
        assert config.out == Path("runs") / name and config.arch["puzzle_emb_ndim"] == 512
    full = load_config("sudoku-extreme-full", ["data=x"]).arch
    assert (full["L_cycles"], full["halt_max_steps"], full["pos_encodings"]) == (8, 8, "learned")


def test_model_sizes_come_from_the_data_and_the_dtype_from_the_device(data):
    metadata = open_dataset(data, "train").metadata
    config = load_config("sudoku-extreme-1k", ["data=x"])
    model = config.model(metadata, torch.device("cuda"))
    assert (model.vocab_size, model.seq_len, model.num_puzzle_identifiers) == (5, 9, 4)
    assert (model.hidden_size, model.H_layers, model.halt_max_steps, model.halt_exploration_prob) == (512, 4, 16, 0.1)
    assert model.forward_dtype == "bfloat16"
    assert config.model(metadata, torch.device("cpu")).forward_dtype == "float32"
    asked = load_config("demo", ["data=x", "arch.forward_dtype=float32"])
    assert asked.model(metadata, torch.device("cuda")).forward_dtype == "float32"


def test_overrides_files_and_bases(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: sudoku-extreme-1k-laptop\nlr: 2e-5\narch:\n  H_cycles: 3\nout: 2024\n")
    config = load_config(str(mine), ["data=x", "arch.L_cycles=4", "seed=5", "eval_interval=null", "ema=true"])
    assert (config.lr, config.global_batch_size, config.epochs, config.seed) == (2e-5, 384, 20_000, 5)
    assert config.arch == {"puzzle_emb_ndim": 512, "H_cycles": 3, "L_cycles": 4}
    assert config.eval_interval is None and config.ema is True and config.out == Path("2024")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lrr=3"], "unknown key lrr; did you mean lr"),
        (["data_path=x"], "unknown key data_path; did you mean data"),
        (["arch.hidden=3"], "unknown key arch.hidden; did you mean arch.hidden_size"),
        (["arch.qqq=3"], "unknown key arch.qqq; there are arch.H_cycles, arch.H_layers"),
        (["arch.vocab_size=3"], "arch.vocab_size comes from the data set"),
        (["arch=3"], r"arch: Input should be a valid dictionary \(got 3\)"),
        (["lr=fast"], r"lr: .* valid number.* \(got 'fast'\)"),
        (["lr=nan"], "lr: Input should be a finite number"),
        (["epochs=1.5"], r"epochs: .*integer.* \(got 1.5\)"),
        (["global_batch_size=0"], r"global_batch_size: .*greater than 0 \(got 0\)"),
        (["loss=mse"], "loss: Input should be 'stablemax_cross_entropy' or 'softmax_cross_entropy'"),
        (["lr"], "'lr' is no override; expected key=value"),
        (["lr=${nothing}"], "overrides .*: Interpolation key 'nothing' not found"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(InputError, match=message) as error:
        load_config("demo", ["data=x", *overrides])
    assert "\n" not in str(error.value)


def test_an_empty_out_is_the_default_one():
    assert load_config("demo", ["data=x", "out="]).out == load_config("demo", ["data=x"]).out == Path("runs/demo")


def test_wrong_recipes_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"no recipe 'sudoku-extreme' \(did you mean sudoku-extreme-1k\?\); expected arc-1"
    ):
        load_config("sudoku-extreme", ["data=x"])
    with pytest.raises(InputError, match="no data folder given; say data=DIR"):
        load_config("demo")
    for text, message in (("- 1\n- 2\n", "holds no mapping"), ("a: [1", "cannot be read"), ("base: {0}", "own base")):
        path = tmp_path / "bad.yaml"
        path.write_text(text.format(path) if "{0}" in text else text)
        with pytest.raises(InputError, match=message):
            load_config(str(path), ["data=x"])


def test_impossible_models_are_named(data):
    metadata = open_dataset(data, "train").metadata
    with pytest.raises(InputError, match="hidden_size 512 is not a multiple of num_heads 7"):
        load_config("arc-1", ["data=x", "arch.num_heads=7"]).model(metadata, torch.device("cpu"))

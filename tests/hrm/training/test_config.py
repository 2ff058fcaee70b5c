"""Recipes and overrides, and the errors for wrong ones."""

from pathlib import Path

import pytest
import torch

import hrm
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
    tiny = {
        "trm-arc-1": (100_000, 768, 1e-4, 1e-2, 0.1, 0.1, *stablemax),
        "trm-arc-2": (100_000, 768, 1e-4, 1e-2, 0.1, 0.1, *stablemax),
        "trm-attention-sudoku-extreme-1k": (50_000, 768, 1e-4, 1e-4, 1.0, 1.0, *stablemax),
        "trm-cgar-sudoku-extreme-1k": (50_000, 768, 1e-4, 1e-4, 1.0, 1.0, *stablemax),
        "trm-maze-hard-1k": (50_000, 768, 1e-4, 1e-4, 1.0, 1.0, *stablemax),
        "trm-sudoku-extreme-1k": (50_000, 768, 1e-4, 1e-4, 1.0, 1.0, *stablemax),
    }
    assert {*table, *tiny, "demo"} <= set(recipes())
    assert {name for name in recipes() if name.startswith("trm")} == set(tiny)
    for name, values in (table | tiny).items():
        config = load_config(name, ["data=x"])
        assert tuple(getattr(config, key) for key in names) == values
        assert (config.lr_warmup_steps, config.beta1, config.beta2) == (2000, 0.9, 0.95)
        assert config.out == Path("runs") / name and config.arch["puzzle_emb_ndim"] == 512
        assert config.family == ("trm" if name in tiny else "hrm")
        assert (config.ema, config.ema_rate) == (name in tiny, 0.999)
        assert config.eval_interval == config.epochs // 10
        assert (config.loss_decay, len(config.depth)) == ((0.7, 2) if "cgar" in name else (1.0, 0))
    full = load_config("sudoku-extreme-full", ["data=x"]).arch
    assert (full["L_cycles"], full["halt_max_steps"], full["pos_encodings"]) == (8, 8, "learned")


def test_recipes_of_tiny_recursive_models(data):
    metadata = open_dataset(data, "train").metadata
    table = {  # L_cycles, mlp_t
        "trm-arc-1": (4, False),
        "trm-arc-2": (4, False),
        "trm-attention-sudoku-extreme-1k": (6, False),
        "trm-cgar-sudoku-extreme-1k": (6, True),
        "trm-maze-hard-1k": (4, False),
        "trm-sudoku-extreme-1k": (6, True),
    }
    for name, (L_cycles, mlp_t) in table.items():
        model = load_config(name, ["data=x"]).model(metadata, torch.device("cuda"))
        assert isinstance(model, hrm.TRMConfig) and model.forward_dtype == "bfloat16"
        assert (model.H_cycles, model.L_cycles, model.L_layers, model.mlp_t) == (3, L_cycles, 2, mlp_t)
        assert model.pos_encodings == ("none" if mlp_t else "rope")
        assert (model.puzzle_emb_ndim, model.puzzle_emb_len, model.no_ACT_continue) == (512, 16, True)
        assert (model.hidden_size, model.num_heads, model.halt_max_steps, model.gradient) == (512, 8, 16, "last_cycle")


def test_recipes_of_equilibrium_reasoners(data):
    """As in config/arch/eqr.yaml and config/train of the published code."""
    metadata = open_dataset(data, "train").metadata
    table = {  # epochs, hidden_size, L_layers, L_cycles, mlp_t, pos_encodings
        "eqr-sudoku-extreme-1k": (50_000, 512, 2, 6, True, "none"),
        "eqr-maze-unique-1k": (100_000, 128, 1, 4, False, "rope"),
    }
    assert {name for name in recipes() if name.startswith("eqr")} == set(table)
    for name, sizes in table.items():
        config = load_config(name, ["data=x"])
        assert (config.family, config.global_batch_size, config.lr, config.weight_decay) == ("eqr", 768, 1e-4, 1.0)
        assert (config.lr_warmup_steps, config.lr_min_ratio, config.ema, config.ema_rate) == (2000, 1.0, True, 0.999)
        assert config.loss == "stablemax_cross_entropy" and config.eval_interval == 5000
        model = config.model(metadata, torch.device("cuda"))
        assert isinstance(model, hrm.EqRConfig)
        assert (config.epochs, model.hidden_size, model.L_layers, model.L_cycles) == sizes[:4]
        assert (model.mlp_t, model.pos_encodings) == sizes[4:]
        assert (model.H_cycles, model.num_heads, model.expansion, model.halt_max_steps) == (3, 8, 4, 16)
        assert (model.lambda_, model.noise_scale, model.H_init_std, model.L_init_std) == (0.95, 0.01, 1.0, 1.0)
        assert (model.halt_exploration_prob, model.puzzle_emb_ndim, model.no_ACT_continue) == (0.1, 0, True)


def test_recipes_of_universal_reasoning_models(data):
    """As in scripts/ and config/ of the published code."""
    metadata = open_dataset(data, "train").metadata
    table = {  # epochs, global_batch_size, puzzle_emb_lr, both weight decays
        "urm-arc-1": (200_000, 768, 1e-2, 0.1, 0.1),
        "urm-arc-2": (200_000, 768, 1e-2, 0.1, 0.1),
        "urm-sudoku-extreme-1k": (50_000, 128, 1e-4, 1.0, 1.0),
    }
    assert {name for name in recipes() if name.startswith("urm")} == set(table)
    names = ("epochs", "global_batch_size", "puzzle_emb_lr", "weight_decay", "puzzle_emb_weight_decay")
    for name, values in table.items():
        config = load_config(name, ["data=x"])
        assert tuple(getattr(config, key) for key in names) == values
        assert (config.family, config.lr, config.eval_interval, config.ema, config.ema_rate) == (
            "urm", 1e-4, 2000, True, 0.999,
        )  # fmt: skip
        assert (config.lr_warmup_steps, config.beta1, config.beta2, config.lr_min_ratio) == (2000, 0.9, 0.95, 1.0)
        model = config.model(metadata, torch.device("cuda"))
        assert isinstance(model, hrm.URMConfig)
        assert (model.num_layers, model.H_cycles, model.L_cycles, model.halt_max_steps) == (4, 2, 6, 16)
        assert (model.hidden_size, model.num_heads, model.expansion, model.puzzle_emb_ndim) == (512, 8, 4, 512)
        assert (model.halt_exploration_prob, model.gradient, model.pos_encodings) == (0.1, "last_cycle", "rope")


def test_the_keys_of_arch_belong_to_the_family(data):
    metadata = open_dataset(data, "train").metadata
    overrides = ["data=x", "arch.gradient=3", "arch.recompute=true", "gradient_warmup=100"]
    config = load_config("trm-sudoku-extreme-1k", overrides)
    model = config.model(metadata, torch.device("cpu"))
    assert (model.gradient, model.recompute, config.gradient_warmup) == (3, True, 100)
    assert load_config("demo", overrides).model(metadata, torch.device("cpu")).gradient == 3
    with pytest.raises(InputError, match=r"unknown key arch.H_layers; did you mean arch.L_layers"):
        load_config("trm-arc-1", ["data=x", "arch.H_layers=4"])
    with pytest.raises(InputError, match="unknown key arch.mlp_t"):
        load_config("arc-1", ["data=x", "arch.mlp_t=true"])
    for family in ("rnn", "[1]", "{a: 1}"):
        with pytest.raises(InputError, match=r"family: Input should be 'hrm', 'trm', 'eqr' or 'urm'"):
            load_config("arc-1", ["data=x", f"family={family}"])


def test_model_sizes_come_from_the_data_and_the_dtype_from_the_device(data, monkeypatch):
    metadata = open_dataset(data, "train").metadata
    config = load_config("sudoku-extreme-1k", ["data=x"])
    model = config.model(metadata, torch.device("cuda"))
    assert (model.vocab_size, model.seq_len, model.num_puzzle_identifiers) == (5, 9, 4)
    assert (model.hidden_size, model.H_layers, model.halt_max_steps, model.halt_exploration_prob) == (512, 4, 16, 0.1)
    assert model.forward_dtype == "bfloat16"
    for is_fast, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(hrm.config, "bfloat16_is_fast", lambda is_fast=is_fast: is_fast)
        assert config.model(metadata, torch.device("cpu")).forward_dtype == dtype
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
        (["arch.qqq=3"], "unknown key arch.qqq; expected one of arch.H_cycles, arch.H_layers"),
        (["arch.vocab_size=3"], "arch.vocab_size comes from the data set"),
        (["arch=3"], r"arch: Input should be a valid dictionary \(got 3\)"),
        (["lr=fast"], r"lr: .* valid number.* \(got 'fast'\)"),
        (["lr=nan"], "lr: Input should be a finite number"),
        (["epochs=1.5"], r"epochs: .*integer.* \(got 1.5\)"),
        (["global_batch_size=0"], r"global_batch_size: .*greater than 0 \(got 0\)"),
        (["loss=mse"], "loss: Input should be 'stablemax_cross_entropy' or 'softmax_cross_entropy'"),
        (["lr"], "'lr' is not an override; expected key=value"),
        (["lr=${nothing}"], "overrides .*: Interpolation key 'nothing' not found"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(InputError, match=message) as error:
        load_config("demo", ["data=x", *overrides])
    assert "\n" not in str(error.value)


NAMES = ("2024_11_28", "007", "1.10", "1e3", "12:30:45", "on", "run #5", "[a]", "${b}", "a=b", " x", "0x1F")


@pytest.mark.parametrize("name", NAMES)
def test_names_keep_their_text(tmp_path, name):
    config = load_config("demo", [f"data={name}", f"out={name}", f"init={name}", f"device={name}"])
    assert [str(one) for one in (config.data, config.out, config.init, config.device)] == [name] * 4
    if name in NAMES[:6]:  # the others have a meaning in a YAML file
        (tmp_path / "mine.yaml").write_text(f"base: demo\ndata: {name}\nout: {name}\n")
        config = load_config(str(tmp_path / "mine.yaml"))
        assert config.data == config.out == Path(name)


def test_a_base_may_be_named_like_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "007").write_text("base: demo\nlr: 3e-3\ninit: null\n")
    (tmp_path / "mine.yaml").write_text("base: 007\n")
    config = load_config("mine.yaml", ["data=x", "out=a", "out=b"])
    assert (config.lr, config.init, config.out) == (3e-3, None, Path("b"))
    assert load_config("mine.yaml", ["data=x", "init=y", "init=null"]).init is None


def test_an_empty_out_is_the_default():
    assert load_config("demo", ["data=x", "out="]).out == load_config("demo", ["data=x"]).out == Path("runs/demo")


def test_wrong_recipes_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"no recipe 'sudoku-extreme' \(did you mean sudoku-extreme-1k\?\); expected arc-1"
    ):
        load_config("sudoku-extreme", ["data=x"])
    with pytest.raises(InputError, match="no data folder; add --data DIR, as in: hrm train demo --data data/sudoku"):
        load_config("demo")
    for text, message in (
        ("- 1\n- 2\n", "does not hold a mapping"),
        ("a: [1", "cannot be read"),
        ("base: {0}", "own base"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(text.format(path) if "{0}" in text else text)
        with pytest.raises(InputError, match=message):
            load_config(str(path), ["data=x"])


def test_impossible_models_are_named(data):
    metadata = open_dataset(data, "train").metadata
    with pytest.raises(InputError, match="hidden_size 512 is not a multiple of num_heads 7"):
        load_config("arc-1", ["data=x", "arch.num_heads=7"]).model(metadata, torch.device("cpu"))


def test_recipes_do_not_read_the_environment(tmp_path, monkeypatch):
    """References to keys of the same file are resolved; those to OmegaConf's resolvers keep their text."""
    monkeypatch.setenv("HRM_SECRET", "7")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: ${oc.env:HRM_SECRET}\nepochs: 5\nseed: ${epochs}\nout: runs/${seed}\n")
    config = load_config(str(recipe))
    assert (str(config.data), config.seed, str(config.out)) == ("${oc.env:HRM_SECRET}", 5, "runs/5")
    assert str(load_config(str(recipe), ["out=\\${oc.env:HRM_SECRET}"]).out) == "\\${oc.env:HRM_SECRET}"
    with pytest.raises(InputError, match=r"lr: Input should be a valid number.*got '\$\{oc.env:HRM_SECRET\}'"):
        load_config(str(recipe), ["lr=${oc.env:HRM_SECRET}"])
    recipe.write_text("base: ${oc.env:HRM_SECRET}\n")
    with pytest.raises(InputError, match=r"no recipe '\$\{oc.env:HRM_SECRET\}'"):
        load_config(str(recipe))


BOMB = "a: &a [1, 2]\n" + "".join(
    f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefghij", "bcdefghijk")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "with its aliases it has more than 100,000 values"),
        ("a: &a [*a]", "it is nested too deep"),
        ("[" * 5000, "it is nested too deep"),
        ("3", "it is a single word, expected lines such as 'key: value'"),
        ("lr: " + "9" * 5000, "Exceeds the limit"),
        ("lr: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
    ids=["aliases", "cycle", "deep", "word", "digits", "code"],
)
def test_recipes_that_need_too_much_memory_or_run_code_are_refused(tmp_path, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError, match=f"recipe .*recipe.yaml cannot be read: {message}"):
        load_config(str(recipe))


def test_a_number_of_thousands_of_digits_is_reported_in_one_line():
    with pytest.raises(InputError, match=r"overrides epochs=9{93}\.\.\.: Exceeds the limit"):
        load_config("demo", ["epochs=" + "9" * 5000])

"""Models on disk: round trips, published checkpoints, damage and refusal."""

import json
import pickle
import resource

import pytest
import torch
import yaml

import hrm
from hrm.families import build, weight_shapes

CONFIG = hrm.HRMConfig(
    seq_len=6, vocab_size=7, num_puzzle_identifiers=4, puzzle_emb_ndim=32, H_layers=1, L_layers=2, hidden_size=32,
    num_heads=2, expansion=1.0, forward_dtype="float32",
)  # fmt: skip
PUBLISHED_YAML = """
arch:
  name: hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1
  loss: {name: losses@ACTLossHead, loss_type: stablemax_cross_entropy}
  H_cycles: 2
  L_cycles: 2
  H_layers: 1
  L_layers: 2
  hidden_size: 32
  num_heads: 2
  expansion: 1.0
  puzzle_emb_ndim: ${.hidden_size}
  pos_encodings: rope
  halt_max_steps: 16
  halt_exploration_prob: 0.1
data_path: data/sudoku
lr: 1e-4
"""


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = hrm.HRM(CONFIG)
    torch.nn.init.normal_(model.puzzle_emb.weights)
    return model


@pytest.fixture
def published(model, tmp_path):
    """A folder as the published code writes it."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "all_config.yaml").write_text(PUBLISHED_YAML)
    torch.save({f"_orig_mod.model.{name}": value for name, value in model.state_dict().items()}, folder / "step_104160")
    return folder


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_save_and_load(model, tmp_path):
    hrm.save(model, tmp_path / "model", task="sudoku")
    loaded = hrm.load(tmp_path / "model")
    assert same(loaded, model) and loaded.config == CONFIG and not loaded.training
    assert json.loads((tmp_path / "model" / "config.json").read_text())["task"] == "sudoku"
    with pytest.raises(hrm.InputError, match="exists already"):
        hrm.save(model, tmp_path / "model")
    hrm.save(hrm.HRM(CONFIG), tmp_path / "model", overwrite=True)
    assert not same(hrm.load(tmp_path / "model"), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_failed_save_leaves_what_was_there(model, tmp_path, monkeypatch):
    hrm.save(model, tmp_path / "model")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("hrm.weights.tensor_files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        hrm.save(hrm.HRM(CONFIG), tmp_path / "model", overwrite=True)
    assert same(hrm.load(tmp_path / "model"), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_full_disk_is_reported_for_safetensors(model, tmp_path):
    hrm.save(model, tmp_path / "model")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*model.safetensors"):
            hrm.save(hrm.HRM(CONFIG), tmp_path / "model", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert same(hrm.load(tmp_path / "model"), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_tied_weights_are_saved_as_copies(model, tmp_path):
    model.inner.lm_head.weight = model.inner.embed_tokens.embedding_weight
    model.inner.L_level = model.inner.H_level = hrm.HRM(CONFIG.model_copy(update={"H_layers": 2})).inner.H_level
    model.config = CONFIG.model_copy(update={"H_layers": 2})
    hrm.save(model, tmp_path / "model")
    assert same(hrm.load(tmp_path / "model"), model)


def test_changed_weights_are_refused(model, tmp_path):
    hrm.save(model, tmp_path / "model")
    file, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    raw = file.read_bytes()
    file.write_bytes(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
    with pytest.raises(
        hrm.InputError, match="model.safetensors is damaged or incomplete .the contents of .* have changed since"
    ):
        hrm.load(tmp_path / "model")
    values = json.loads(config.read_text())
    for files in (7, {"model.safetensors": 7}, {"model.safetensors": {}}):
        config.write_text(json.dumps(values | {"files": files}))
        if files == 7:
            hrm.load(tmp_path / "model")
        else:
            with pytest.raises(hrm.InputError, match="model.safetensors is damaged"):
                hrm.load(tmp_path / "model")
    del values["files"]  # as written by earlier versions
    config.write_text(json.dumps(values))
    hrm.load(tmp_path / "model")


def test_a_published_configuration_does_not_read_the_environment(published, model, monkeypatch):
    monkeypatch.setenv("HRM_SECRET", "32")
    file = published / "all_config.yaml"
    text = file.read_text()
    file.write_text(text + "checkpoint_path: ${oc.env:HRM_SECRET}/${now:%Y}\n")
    assert same(hrm.load(published, seq_len=6), model)  # the model does not need this value
    file.write_text(text.replace("hidden_size: 32", "hidden_size: ${oc.env:HRM_SECRET}"))
    with pytest.raises(hrm.InputError, match=r"hidden_size: .*got '\$\{oc.env:HRM_SECRET\}'"):
        hrm.load(published, seq_len=6)


@pytest.mark.parametrize("name", ["", "step_104160"])
def test_published_folder_and_file(published, model, name):
    loaded = hrm.load(published / name, seq_len=6)
    assert same(loaded, model)
    assert loaded.config == CONFIG.model_copy(update={"halt_max_steps": 16})


def test_published_checkpoint_of_an_unknown_task_needs_seq_len(published):
    with pytest.raises(hrm.InputError, match=r"how long its sequences are \(vocabulary 7\); pass seq_len"):
        hrm.load(published)


def test_newest_of_several_published_steps(published, model):
    newer = hrm.HRM(CONFIG)
    torch.save(newer.state_dict(), published / "step_1000000")
    assert same(hrm.load(published, seq_len=6), newer)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused(published, capsys):
    torch.save({"inner.lm_head.weight": Evil()}, published / "step_104160")
    with pytest.raises(hrm.InputError, match="is refused: its pickle holds more than tensors"):
        hrm.load(published, seq_len=6)
    (published / "step_104160").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(hrm.InputError, match="is refused|damaged"):
        hrm.load(published, seq_len=6)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_truncated_published_checkpoint(published, keep):
    file = published / "step_104160"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(hrm.InputError, match="step_104160 is damaged"):
        hrm.load(published, seq_len=6)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04]", bytes(range(256))])
def test_a_file_that_is_not_a_published_checkpoint(published, content):
    (published / "step_104160").write_bytes(content)
    with pytest.raises(hrm.InputError, match="step_104160 is damaged, incomplete or not a checkpoint"):
        hrm.load(published, seq_len=6)


@pytest.mark.parametrize("value", ["wide", "0"])
def test_a_published_configuration_with_an_invalid_value(published, value):
    file = published / "all_config.yaml"
    values = yaml.safe_load(file.read_text())
    values["arch"]["hidden_size"] = yaml.safe_load(value)
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(hrm.InputError, match="model configuration: .*hidden_size: Input should be"):
        hrm.load(published)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_truncated_model(model, tmp_path, keep):
    hrm.save(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(hrm.InputError, match="model.safetensors is damaged or incomplete"):
        hrm.load(tmp_path / "model")


@pytest.mark.parametrize("rows", [2, 6])
def test_puzzle_embedding_of_another_size(published, model, rows):
    old = model.puzzle_emb.weights
    with pytest.raises(
        hrm.InputError, match=f"has 4 rows and the data {rows} puzzle identifiers; choose puzzle_emb=keep"
    ):
        hrm.load(published, seq_len=6, num_puzzle_identifiers=rows)
    common = min(rows, 4)
    for choice, want in {
        "keep": torch.cat((old[:common], torch.zeros(rows - common, 32))),
        "mean": old.mean(0).expand(rows, 32),
        "zero": torch.zeros(rows, 32),
    }.items():
        loaded = hrm.load(published, seq_len=6, num_puzzle_identifiers=rows, puzzle_emb=choice)
        torch.testing.assert_close(loaded.puzzle_emb.weights, want)


def test_choices_are_checked_even_if_the_checkpoint_does_not_need_them(tmp_path):
    plain = hrm.HRM(CONFIG.model_copy(update={"puzzle_emb_ndim": 0}))
    hrm.save(plain, tmp_path / "model")
    with pytest.raises(hrm.InputError, match="^eight_bit is 'fp4', expected None or one of fp8, int8, auto$"):
        hrm.load(tmp_path, eight_bit="fp4")
    with pytest.raises(hrm.InputError, match="^weights is 'EMA', expected one of model, ema, auto$"):
        hrm.load(tmp_path / "model", weights="EMA")
    for load in (
        lambda choice: hrm.load(tmp_path / "model", puzzle_emb=choice),
        lambda choice: hrm.from_published(plain.state_dict(), plain.config, choice),
    ):
        assert same(load("mean"), plain)
        with pytest.raises(hrm.InputError, match="^puzzle_emb is 'bad', expected one of strict, keep, mean, zero$"):
            load("bad")


def test_state_dict_that_does_not_fit(model):
    state = model.state_dict()
    with pytest.raises(hrm.InputError, match=r"lm_head.weight is \[7, 32\], expected \[8, 32\]|embedding_weight is"):
        hrm.from_published(state, CONFIG.model_copy(update={"vocab_size": 8}))
    with pytest.raises(
        hrm.InputError, match="it has inner.L_level.layers.1.*which this model does not have .and 3 more"
    ):
        hrm.from_published(state, CONFIG.model_copy(update={"L_layers": 1}))
    del state["inner.H_init"]
    with pytest.raises(hrm.InputError, match="it lacks inner.H_init"):
        hrm.from_published(state, CONFIG)


def test_a_path_that_is_not_a_model(tmp_path):
    with pytest.raises(hrm.InputError, match="is not a model: expected config.json"):
        hrm.load(tmp_path)
    with pytest.raises(hrm.InputError, match="does not exist; expected a model folder"):
        hrm.load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(hrm.InputError, match="has no 'model' section"):
        hrm.load(tmp_path)


def test_hub_names_that_are_not_available(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        hrm.InputError, match="sapientinc/no-such-model is neither a local path nor available from the hub"
    ):
        hrm.load("sapientinc/no-such-model")


def test_hub_names_are_downloaded(published, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(published))
    assert same(hrm.load("owner/name", seq_len=6), model)


def test_dtype_on_a_cpu_is_the_fast_one_by_default(published, monkeypatch):
    for is_fast, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(hrm.config, "bfloat16_is_fast", lambda is_fast=is_fast: is_fast)
        assert hrm.load(published, seq_len=6).config.forward_dtype == dtype
        assert hrm.load(published, seq_len=6, forward_dtype="float32").config.forward_dtype == "float32"
    assert hrm.load(published, seq_len=6, forward_dtype="bfloat16").config.forward_dtype == "bfloat16"


def test_the_newest_checkpoint_of_a_run_by_number(model, tmp_path):
    older, newer = hrm.HRM(CONFIG), model
    hrm.save(older, tmp_path / "checkpoints" / "step_99999999")
    hrm.save(newer, tmp_path / "checkpoints" / "step_100000000")
    (tmp_path / "checkpoints" / "step_x").mkdir()
    assert same(hrm.load(tmp_path), newer)


ABSURD = {
    "width": ("hidden_size", 10**6, "hidden_size: Input should be less than or equal to 131072 .got 1000000"),
    "words": ("vocab_size", 2**40, "vocab_size: Input should be less than or equal to 16777216"),
    "layers": ("L_layers", 10**7, "L_layers: Input should be less than or equal to 1024"),
    "tokens": ("seq_len", 2**40, "seq_len: Input should be less than or equal to 1048576"),
    "cycles": ("H_cycles", 10**12, "H_cycles: Input should be less than or equal to 4096"),
    "expansion": ("expansion", 1e30, "expansion: Input should be less than or equal to 1024"),
    "rows": (
        "num_puzzle_identifiers",
        2**40,
        "num_puzzle_identifiers: Input should be less than or equal to 2147483647",
    ),
    "text": ("hidden_size", "9" * 5000, r"hidden_size: .*\(got '9{70,80}\.\.\.\)$"),
    # possible values, which only the weights contradict
    "wide": ("hidden_size", 2**17, r"inner.H_init is \[32\], expected \[131072\]"),
    "wordy": ("vocab_size", 2**24, r"embed_tokens.embedding_weight is \[7, 32\], expected \[16777216, 32\]"),
    "deep": ("L_layers", 1000, r"it lacks inner.L_level.layers.10.mlp.down_proj.weight \(and 3991 more\)"),
    "inner": ("expansion", 1024, r"mlp.gate_up_proj.weight is \[512, 32\], expected \[44032, 32\]"),
    "emb": ("puzzle_emb_ndim", 2**20, r"puzzle_emb is \[4, 32\], expected \[rows, 1048576\]"),
    "many": ("num_puzzle_identifiers", 2**31 - 1, "puzzle_emb has 4 rows and the data 2147483647 puzzle identifiers"),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_an_absurd_configuration_is_refused_before_the_model_is_built(model, tmp_path, kind, monkeypatch):
    key, value, message = ABSURD[kind]
    hrm.save(model, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["model"][key] = value
    file.write_text(json.dumps(config))
    monkeypatch.setattr("hrm.weights.loading.build", None)
    with pytest.raises(hrm.InputError, match=message):
        hrm.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: dict(enumerate(state.values())), "holds dict, expected a state"),
        (
            lambda state: state | {"inner.embed_tokens.embedding_weight": torch.zeros(())},
            "does not hold a model: inner.em",
        ),
        (
            lambda state: state | {"inner.puzzle_emb.weights": torch.zeros(32)},
            r"puzzle_emb.weights is \[32\], expected two",
        ),
        (lambda state: state | {"inner.H_init": torch.zeros(())}, r"inner.H_init is \[\], expected \[32\]"),
    ],
)
def test_published_weights_of_odd_shapes(published, model, change, message):
    torch.save(change(dict(model.state_dict())), published / "step_104160")
    with pytest.raises(hrm.InputError, match=message):
        hrm.load(published, seq_len=6)


def test_a_number_of_thousands_of_digits_is_refused(model, published, tmp_path):
    hrm.save(model, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace('"hidden_size": 32', '"hidden_size": ' + "9" * 5000))
    with pytest.raises(hrm.InputError, match="config.json is not JSON: Exceeds the limit"):
        hrm.load(tmp_path / "model")
    file = published / "all_config.yaml"
    file.write_text(file.read_text().replace("hidden_size: 32", "hidden_size: " + "9" * 5000))
    with pytest.raises(hrm.InputError, match="all_config.yaml is not a training configuration: Exceeds the limit"):
        hrm.load(published, seq_len=6)


def test_more_rows_than_fit_into_memory_are_refused(model, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 2**18)  # pages, and bytes of one: 64 GB
    rows = CONFIG.model_copy(update={"num_puzzle_identifiers": 2**31 - 1, "puzzle_emb_ndim": 32})
    with pytest.raises(
        hrm.InputError,
        match="the weights of this model would take 256 GB, and this machine has 64 GB .*; check hidden_size 32,",
    ):
        hrm.from_published(model.state_dict(), rows, "keep")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        CONFIG.model_copy(update={"pos_encodings": "learned", "puzzle_emb_ndim": 0}),
        hrm.TRMConfig(seq_len=6, vocab_size=7, puzzle_emb_ndim=40, hidden_size=32, mlp_t=True, pos_encodings="none"),
        hrm.TRMConfig(seq_len=6, vocab_size=7, hidden_size=32, num_heads=2),
    ],
)
def test_weight_shapes_are_those_of_the_model(config):
    built = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    random = torch.get_rng_state()
    assert weight_shapes(config) == built
    assert torch.equal(torch.get_rng_state(), random)

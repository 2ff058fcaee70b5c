"""Models on disk: round trips, published checkpoints, damage and refusal."""

import json
import pickle

import pytest
import torch
import yaml

import hrm

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
    """A folder as the published code leaves it."""
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

    monkeypatch.setattr("hrm.weights.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        hrm.save(hrm.HRM(CONFIG), tmp_path / "model", overwrite=True)
    assert same(hrm.load(tmp_path / "model"), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("name", ["", "step_104160"])
def test_published_folder_and_file(published, model, name):
    loaded = hrm.load(published / name, seq_len=6)
    assert same(loaded, model)
    assert loaded.config == CONFIG.model_copy(update={"halt_max_steps": 16})


def test_published_checkpoint_of_an_unknown_task_asks_for_its_length(published):
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
def test_what_is_no_published_checkpoint(published, content):
    (published / "step_104160").write_bytes(content)
    with pytest.raises(hrm.InputError, match="step_104160 is damaged, incomplete or no checkpoint"):
        hrm.load(published, seq_len=6)


@pytest.mark.parametrize("value", ["wide", "0"])
def test_a_published_configuration_with_an_impossible_value(published, value):
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


def test_choices_are_checked_whether_the_checkpoint_needs_them_or_not(tmp_path):
    plain = hrm.HRM(CONFIG.model_copy(update={"puzzle_emb_ndim": 0}))
    hrm.save(plain, tmp_path / "model")
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
    with pytest.raises(hrm.InputError, match="it has inner.L_level.layers.1.*which this model has not .and 3 more"):
        hrm.from_published(state, CONFIG.model_copy(update={"L_layers": 1}))
    del state["inner.H_init"]
    with pytest.raises(hrm.InputError, match="it lacks inner.H_init"):
        hrm.from_published(state, CONFIG)


def test_what_is_no_model(tmp_path):
    with pytest.raises(hrm.InputError, match="is no model: expected config.json"):
        hrm.load(tmp_path)
    with pytest.raises(hrm.InputError, match="does not exist; expected a model folder"):
        hrm.load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(hrm.InputError, match="has no 'model' section"):
        hrm.load(tmp_path)


def test_hub_names_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        hrm.InputError, match="sapientinc/no-such-model is neither a path here nor to be had from the hub"
    ):
        hrm.load("sapientinc/no-such-model")


def test_hub_names_are_downloaded(published, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(published))
    assert same(hrm.load("owner/name", seq_len=6), model)


def test_dtype_is_float32_on_a_cpu_unless_asked(published):
    assert hrm.load(published, seq_len=6).config.forward_dtype == "float32"
    assert hrm.load(published, seq_len=6, forward_dtype="bfloat16").config.forward_dtype == "bfloat16"


def test_the_newest_checkpoint_of_a_run_by_number(model, tmp_path):
    older, newer = hrm.HRM(CONFIG), model
    hrm.save(older, tmp_path / "checkpoints" / "step_99999999")
    hrm.save(newer, tmp_path / "checkpoints" / "step_100000000")
    (tmp_path / "checkpoints" / "step_x").mkdir()
    assert same(hrm.load(tmp_path), newer)

"""Checkpoints: what they keep, that damage is detected, and what happens on a full disk."""

import json
import shutil

import pytest
import torch
from runs import assert_same, contents
from safetensors.torch import load_file

import hrm
from hrm.errors import InputError
from hrm.training.config import TrainConfig
from hrm.training.trainer import Trainer, TrainingError, train


def test_the_last_checkpoints_are_kept_and_load(configure, cpu):
    config = configure(max_steps=7, checkpoint_every=1, keep=2, ema=True)
    result = train(config, cpu)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == ["step_00000006", "step_00000007"]
    model = hrm.load(config.out)  # the averaged weights of the newest checkpoint
    averaged = load_file(result.checkpoint / "ema.safetensors")
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in model.state_dict().items())
    config_json = json.loads((result.checkpoint / "config.json").read_text())
    assert TrainConfig.model_validate(config_json["training"]) == config
    # nothing is left to do: the checkpoint stays untouched
    before = (result.checkpoint / "state.json").stat().st_mtime_ns
    again = train(config.model_copy(update={"resume": True}), cpu)
    assert again.checkpoint == result.checkpoint and (again.checkpoint / "state.json").stat().st_mtime_ns == before


def test_a_sharded_puzzle_embedding_in_one_process_equals_the_whole_one(configure, cpu, monkeypatch):
    """To the bit; and either run resumes from the checkpoint of the other."""
    changes = {"ema": True, "eval_interval": 1}
    whole = train(configure("whole", max_steps=6, **changes), cpu)
    sharded = train(configure("sharded", max_steps=6, puzzle_emb_sharded=True, **changes), cpu)
    expected, found = contents(whole.checkpoint), contents(sharded.checkpoint)
    table = found.pop("puzzle_emb.safetensors/inner.puzzle_emb.weights")
    assert table.abs().max() > 0.01
    for file in ("model", "ema"):
        assert torch.equal(table, expected.pop(f"{file}.safetensors/inner.puzzle_emb.weights"))
    assert_same(expected, found)
    assert torch.equal(hrm.load(sharded.checkpoint).puzzle_emb.weights, table)
    assert not list((sharded.checkpoint.parent).glob(".*"))

    mixed = train(configure("whole", max_steps=9, resume=True, puzzle_emb_sharded=True, **changes), cpu)
    mixed = train(configure("whole", max_steps=12, resume=True, **changes), cpu)
    straight = train(configure("straight", max_steps=12, **changes), cpu)
    a, b = contents(mixed.checkpoint), contents(straight.checkpoint)
    assert_same(a, b)

    run = Trainer(configure("unsaved", puzzle_emb_sharded=True), cpu)
    with pytest.raises(InputError, match="no process has all rows of a sharded puzzle embedding"):
        hrm.save(run.state.model, run.config.out / "model")
    monkeypatch.setattr("hrm.training.checkpoint.os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
    run.train_step()
    with pytest.raises(InputError, match="step 1 cannot be written"):
        run.save()
    run.close()


def test_weights_that_are_not_finite_are_not_saved(configure, cpu):
    run = Trainer(configure(max_steps=1), cpu)
    run.train_step()
    run.state.model.inner.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="step 1 is not finite; .*there is no checkpoint yet"):
        run.save()
    run.close()
    assert not (run.config.out / "checkpoints").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "carry.safetensors", "state.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_named_with_the_one_before(configure, cpu, tmp_path_factory, name, damage):
    config = configure(max_steps=2, checkpoint_every=1)
    train(config, cpu)
    newest = config.out / "checkpoints/step_00000002"
    raw = (newest / name).read_bytes()
    if damage == "gone":
        (newest / name).unlink()
    else:
        flipped = raw[:-20] + bytes([raw[-20] ^ 255]) + raw[-19:]
        (newest / name).write_bytes(raw[: len(raw) // 2] if damage == "cut" else flipped)
    again = config.model_copy(update={"resume": True, "max_steps": 3})
    message = f"checkpoint {newest} is damaged .*; remove it to resume from the one before, step_00000001"
    with pytest.raises(InputError, match=message) as error:
        train(again, cpu)
    assert "\n" not in str(error.value)
    shutil.rmtree(newest)
    assert train(again, cpu).step == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", 1), ("sampler", {"epoch": 0, "position": 1}), ("summed_from", 1), ("recent", [[9, 9]]),
     ("evaluated_at", 1), ("seconds", 0.5), ("puzzles", "0"), ("files", {})],
)  # fmt: skip
def test_a_changed_value_of_the_state_is_detected(configure, cpu, key, value):
    result = train(configure(max_steps=2), cpu)
    state = json.loads((result.checkpoint / "state.json").read_text())
    state = state | {key: value} if key != "puzzles" else state | {"data": state["data"] | {key: value}}
    (result.checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="is damaged .the contents of state.json have changed since it was written"):
        train(configure(max_steps=3, resume=True), cpu)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "puzzle_emb.safetensors", "config.json"])
def test_load_detects_changes_in_a_checkpoint(configure, cpu, name):
    result = train(configure(max_steps=1, ema="ema" in name, puzzle_emb_sharded="puzzle_emb" in name), cpu)
    file = result.checkpoint / name
    raw = file.read_bytes()
    if name == "config.json":
        file.write_bytes(raw.replace(b'"L_cycles": 1', b'"L_cycles": 2'))
    else:
        file.write_bytes(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
    with pytest.raises(InputError, match=f"{name} is damaged or incomplete .*have changed since it was written"):
        hrm.load(result.checkpoint)
    if "ema" in name:
        hrm.load(result.checkpoint, weights="model")


def test_a_full_disk_while_saving_is_reported(configure, cpu, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    run = Trainer(configure(max_steps=3, checkpoint_every=1), cpu)
    run.train_step()
    run.save()
    monkeypatch.setattr("hrm.weights.tensor_files.save_file", full)
    with pytest.raises(InputError, match="step 2 cannot be .*No space left.*last good checkpoint is .*step_00000001"):
        run.train_step()
        run.save()
    run.close()
    assert [path.name for path in (run.config.out / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_while_logging_is_reported(configure, cpu, monkeypatch, saved):
    run = Trainer(configure(max_steps=3, log_every=2, checkpoint_every=1 if saved else None), cpu)
    monkeypatch.setattr("hrm.training.loggers.CsvLog.append", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    way_out = (
        "last good checkpoint is .*step_00000001; free some space and resume" if saved else "there is no checkpoint yet"
    )
    with pytest.raises(InputError, match=f"the log cannot be written in {run.config.out} .full.; .*{way_out}"):
        run.run()
    run.close()

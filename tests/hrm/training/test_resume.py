"""A stopped run continues as if it had never stopped, or says why it cannot."""

import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from runs import assert_same, contents, rows

from hrm.errors import InputError
from hrm.training import step as step_module
from hrm.training.distributed import World
from hrm.training.trainer import train


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": True},
        {"arch": {"puzzle_emb_ndim": 0, "pos_encodings": "learned", "forward_dtype": "bfloat16"}},
        {"loss": "softmax_cross_entropy", "arch": {"halt_max_steps": 1}, "eval_interval": 1, "log_every": 3},
        {"family": "trm", "ema": True, "eval_interval": 1, "log_every": 3},
        {"family": "trm", "arch": {"mlp_t": True, "pos_encodings": "none", "no_ACT_continue": False}},
        {"gradient_warmup": 5, "arch": {"gradient": "full", "recompute": True}},
    ],
    ids=["ema", "no-puzzles-learned-bfloat16", "softmax-one-step-evaluation", "trm", "trm-mixing", "gradient-warm-up"],
)
def test_resuming_is_bit_for_bit(configure, cpu, changes):
    whole = train(configure("whole", max_steps=7, **changes), cpu)
    stopped = train(configure("parts", max_steps=3, **changes), cpu)
    assert stopped.step == 3 and stopped.reason == "limit"
    resumed = train(configure("parts", max_steps=7, resume=True, **changes), cpu)
    assert resumed.step == 7
    assert_same(contents(whole.checkpoint), contents(resumed.checkpoint))
    for name in ("metrics.csv", "evaluation.csv"):
        a, b = ((run.checkpoint.parents[1] / name) for run in (whole, resumed))
        assert a.exists() == b.exists() == (name == "metrics.csv" or "eval_interval" in changes)
        if name == "metrics.csv":
            assert rows(a) == rows(b)
        elif a.exists():  # the stopped run was also evaluated at its end
            steps = [row["step"] for row in rows(a)]
            assert rows(a) == [row for row in rows(b) if row["step"] in steps]
            assert len(rows(b)) == len(set(steps) | {"3"})
    weights = contents(whole.checkpoint)["model.safetensors/inner.lm_head.weight"]
    assert not torch.equal(weights, contents(stopped.checkpoint)["model.safetensors/inner.lm_head.weight"])


def test_resuming_after_a_crash_drops_rows_that_are_written_again(configure, cpu, monkeypatch):
    train(configure("whole", max_steps=8, checkpoint_every=4, log_every=1), cpu)
    real, calls = step_module.act_loss, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("power cut")
        return real(*arguments)

    config = configure("parts", max_steps=8, checkpoint_every=4, log_every=1)
    monkeypatch.setattr(step_module, "act_loss", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, cpu)
    monkeypatch.undo()
    assert [row["step"] for row in rows(config.out / "metrics.csv")] == [str(step) for step in range(1, 7)]
    with (config.out / "metrics.csv").open("a") as file:
        file.write("7,0.")  # a row that the crash cut short
    (config.out / "checkpoints" / ".step_00000006.x.part").mkdir()  # and a checkpoint
    result = train(config.model_copy(update={"resume": True}), cpu)
    whole = config.out.with_name("whole")
    assert rows(config.out / "metrics.csv") == rows(whole / "metrics.csv")
    assert_same(contents(result.checkpoint), contents(whole / "checkpoints/step_00000008"))
    assert {path.name for path in result.checkpoint.parent.iterdir()} == {"step_00000004", "step_00000008"}


def test_resuming_with_nothing_left_to_do_adds_no_row(configure, cpu):
    config = configure(max_steps=6, log_every=4, eval_interval=1)
    train(config, cpu)
    before = {name: (config.out / name).read_text() for name in ("metrics.csv", "evaluation.csv")}
    assert [row["step"] for row in rows(config.out / "metrics.csv")] == ["4", "6"]
    for _ in range(2):
        train(config.model_copy(update={"resume": True}), cpu)
        assert {name: (config.out / name).read_text() for name in before} == before
    train(config.model_copy(update={"resume": True, "max_steps": 8}), cpu)
    assert [row["step"] for row in rows(config.out / "metrics.csv")] == [
        "4",
        "8",
    ]  # (the last row replaces that of step 6)


def test_the_gradient_may_change_within_a_run_but_not_the_family(configure, cpu, capsys):
    train(configure(max_steps=2), cpu)
    train(configure(max_steps=3, resume=True, arch={"gradient": "full", "recompute": True}), cpu)
    with pytest.raises(InputError, match="family was hrm and is trm"):
        train(configure(resume=True, family="trm"), cpu)


def test_a_checkpoint_older_than_families_is_resumed(configure, cpu):
    result = train(configure(max_steps=2), cpu)
    file = result.checkpoint / "config.json"
    values, state = json.loads(file.read_text()), json.loads((result.checkpoint / "state.json").read_text())
    for name in ("gradient", "recompute"):
        del values["model"][name]
    for name in ("family", "gradient_warmup", "puzzle_emb_sharded"):
        del values["training"][name]
    file.write_text(json.dumps(values))
    for name in ("puzzles", "identifiers"):
        del state["data"][name]
    del state["crc32"], state["row_seconds"]
    state["files"]["config.json"] = {"bytes": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())}
    (result.checkpoint / "state.json").write_text(json.dumps(state))
    assert train(configure(max_steps=3, resume=True), cpu).step == 3


def test_a_run_does_not_resume_on_other_puzzles_of_the_same_shape(configure, cpu, tmp_path):
    config = configure(max_steps=2)
    train(config, cpu)
    again = config.model_copy(update={"max_steps": 3, "resume": True, "data": tmp_path / "other"})
    shutil.copytree(config.data, tmp_path / "other")
    labels = np.load(tmp_path / "other/train/all__labels.npy")
    np.save(tmp_path / "other/train/all__labels.npy", np.flip(labels, 1))
    with pytest.raises(InputError, match=f"the puzzles of {tmp_path / 'other'} are not those it was trained on"):
        train(again, cpu)
    np.save(tmp_path / "other/train/all__labels.npy", labels.astype(np.int32))  # the same puzzles
    (tmp_path / "other/identifiers.json").write_text('["<blank>", "a", "c", "b"]')
    with pytest.raises(InputError, match="the names of the puzzle identifiers of .* are not those"):
        train(again, cpu)
    shutil.copy(config.data / "identifiers.json", tmp_path / "other")
    assert train(again, cpu).step == 3


def test_runs_that_do_not_fit_are_refused_and_change_nothing(configure, cpu, tmp_path):
    config = configure(max_steps=2)
    train(config, cpu)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    with pytest.raises(InputError, match=f"{config.out} is not empty; add --resume"):
        train(config, cpu)
    for changes, message in (
        ({"arch": {"hidden_size": 32}}, "arch.hidden_size was 16 and is 32"),
        ({"arch": {"H_layers": 2}}, "arch.H_layers was 1 and is 2"),
        ({"global_batch_size": 4}, "global_batch_size was 8 and is 4"),
        ({"ema": True}, "ema was False and is True"),
    ):
        with pytest.raises(InputError, match=message):
            train(configure(resume=True, **changes), cpu)
    shutil.copytree(config.data, tmp_path / "other")
    metadata = json.loads((tmp_path / "other/train/dataset.json").read_text())
    (tmp_path / "other/train/dataset.json").write_text(json.dumps(metadata | {"pad_id": 1}))
    with pytest.raises(InputError, match="data pad_id was 0 and is 1"):
        train(configure(resume=True, data=tmp_path / "other"), cpu)
    assert before == {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}

    (tmp_path / "other.txt").write_text("precious")
    with pytest.raises(InputError, match=f"{tmp_path} is not empty; choose another --out"):
        train(config.model_copy(update={"out": tmp_path}), cpu)
    with pytest.raises(InputError, match="holds no checkpoint to resume from"):
        train(configure("new", resume=True), cpu)
    with pytest.raises(InputError, match="batch size 8 does not divide among 3 processes; give 6 or 9"):
        train(configure("new"), World(0, 3, cpu.device))
    with pytest.raises(InputError, match="data folder .* does not exist"):
        train(configure("new", data=tmp_path / "nowhere"), cpu)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file; give a folder"):
        train(configure("file"), cpu)


def test_a_changed_setting_is_reported(configure, cpu, capsys):
    train(configure(max_steps=2), cpu)
    train(configure(max_steps=3, lr=1e-3, resume=True), cpu)
    out = capsys.readouterr().out
    assert "step 2" in out and "lr is now 0.001, was 0.003" in out and "out is now" not in out

"""The training loop: what it computes, that a stopped run goes on as if never stopped, and how it refuses."""

import csv
import fcntl
import json
import os
import shutil
import signal
import sys
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hrm
from hrm.data.batches import TrainingSampler
from hrm.data.format import open_dataset
from hrm.errors import InputError
from hrm.inference.evaluate import evaluate
from hrm.inference.metrics import Metrics
from hrm.training import clock as clock_module
from hrm.training import state as state_module
from hrm.training import step as step_module
from hrm.training import trainer as trainer_module
from hrm.training.config import TrainConfig
from hrm.training.distributed import World
from hrm.training.runner import min_steps
from hrm.training.schedule import gradient_mode
from hrm.training.trainer import Trainer, TrainingError, train
from hrm_kernels.optim import AdamATan2, SparseSignSGD


def rows(path, skip=("seconds", "puzzles_per_second")):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in skip} for row in csv.DictReader(file)]


def contents(checkpoint) -> dict[str, object]:
    """Everything a checkpoint holds, but the time it took."""
    found: dict[str, object] = {}
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors":
            found |= {f"{path.name}/{name}": tensor for name, tensor in load_file(path).items()}
    state = json.loads((checkpoint / "state.json").read_text())
    return found | {k: v for k, v in state.items() if k not in ("files", "crc32", "seconds", "row_seconds")}


def assert_same(a: dict[str, object], b: dict[str, object]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        other = b[name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name


def test_a_run_is_the_plain_loop(configure, cpu, data, tmp_path):
    """Eight steps against the same thing written out by hand."""
    config = configure(max_steps=8, ema=True, ema_rate=0.9)
    result = train(config, cpu)
    assert (result.step, result.reason) == (8, "limit")

    dataset = open_dataset(data, "train")
    torch.manual_seed(0)
    model = hrm.HRM(config.model(dataset.metadata, cpu.device)).train()
    adam = AdamATan2(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    sparse = SparseSignSGD([model.puzzle_emb], weight_decay=0.1)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sampler, carry, losses, norms, finished = TrainingSampler(dataset, 8, seed=0), None, [], [], 0
    # 24 groups, 100 epochs, batch 8
    total = int(100 * 24 * dataset.metadata.mean_puzzle_examples / 8)
    for step in range(1, 9):
        batch = sampler.next()
        carry = carry or model.initial_carry(batch)
        carry, outputs = model(carry, batch, min_steps=min_steps(step, 0, 8, model.config, cpu))
        loss, metrics = hrm.act_loss(carry, outputs)
        adam.zero_grad()
        (loss / 8).backward()
        factor = (
            step / 3 if step < 3 else 0.1 + 0.45 * (1 + torch.cos(torch.tensor(torch.pi * (step - 3) / (total - 3))))
        )
        adam.param_groups[0]["lr"], sparse.param_groups[0]["lr"] = 3e-3 * float(factor), 1e-2 * float(factor)
        adam.step()
        sparse.step()
        for name, parameter in model.named_parameters():
            average[name] = 0.9 * average[name] + 0.1 * parameter.detach()
        losses.append(loss.item() / 8)
        norms.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item())
        finished += int(metrics["count"])

    log = rows(config.out / "metrics.csv")
    assert [int(row["step"]) for row in log] == [2, 4, 6, 8]
    means = [(losses[i] + losses[i + 1]) / 2 for i in range(0, 8, 2)]
    assert [float(row["loss"]) for row in log] == pytest.approx(means, rel=1e-5)
    assert [float(row["grad_norm"]) for row in log] == pytest.approx(norms[1::2], rel=1e-4)
    assert sum(int(row["finished"]) for row in log) == finished > 8
    trained, averaged = (load_file(result.checkpoint / f"{name}.safetensors") for name in ("model", "ema"))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(averaged[name], average.get(name, tensor), rtol=1e-4, atol=1e-5)
    assert not torch.equal(trained["inner.lm_head.weight"], averaged["inner.lm_head.weight"])
    assert trained["inner.puzzle_emb.weights"].abs().max() > 0.01


@pytest.mark.parametrize("sharded", [False, True])
def test_a_run_begins_with_the_weights_of_another(configure, cpu, sharded):
    first = train(configure("first", max_steps=2, ema=True), cpu)
    config = configure(max_steps=1, lr=0.0, ema=True, init=str(first.checkpoint.parents[1]), seed=5)
    config = config.model_copy(update={"puzzle_emb_lr": 0.0, "puzzle_emb_sharded": sharded})
    begun = train(config, cpu)
    wanted = hrm.load(first.checkpoint).state_dict()  # the averages
    for weights in ("model", "ema"):
        found = hrm.load(begun.checkpoint, weights=weights).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    resumed = train(config.model_copy(update={"init": "gone by now", "resume": True, "max_steps": 2}), cpu)
    assert resumed.step == 2


def test_what_a_run_cannot_begin_with(configure, cpu, tmp_path):
    first = train(configure("first", max_steps=1), cpu).checkpoint
    with pytest.raises(InputError, match="init=.*does not fit this run: inner.H_init is .16., expected .32."):
        train(configure("wider", init=str(first), arch={"hidden_size": 32, "puzzle_emb_ndim": 32}), cpu)
    with pytest.raises(InputError, match="nothing does not exist"):
        train(configure("none", init="nothing"), cpu)
    fewer = hrm.load(first, num_puzzle_identifiers=3, puzzle_emb="keep")
    hrm.save(fewer, tmp_path / "fewer")
    with pytest.raises(InputError, match="choose puzzle_emb=keep"):
        train(configure("rows", init=str(tmp_path / "fewer")), cpu)
    train(configure("rows", init=str(tmp_path / "fewer"), puzzle_emb="mean", max_steps=1), cpu)


def test_exploration_is_drawn_for_the_global_batch(configure, data, cpu):
    config = configure(arch={"halt_exploration_prob": 0.5, "halt_max_steps": 9})
    model = config.model(open_dataset(data, "train").metadata, cpu.device)
    whole = min_steps(5, 0, 8, model, cpu)
    assert torch.equal(whole, min_steps(5, 0, 8, model, cpu)) and whole.max() > 1
    drawn = [min_steps(5, 0, 8, model, World(rank, 4, cpu.device)) for rank in range(4)]
    assert torch.equal(torch.cat(drawn), whole)
    assert not torch.equal(min_steps(6, 0, 8, model, cpu), whole)


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
        elif a.exists():  # the stopped run was evaluated at its end: one row more
            steps = [row["step"] for row in rows(a)]
            assert rows(a) == [row for row in rows(b) if row["step"] in steps]
            assert len(rows(b)) == len(set(steps) | {"3"})
    weights = contents(whole.checkpoint)["model.safetensors/inner.lm_head.weight"]
    assert not torch.equal(weights, contents(stopped.checkpoint)["model.safetensors/inner.lm_head.weight"])


def test_resuming_after_a_crash_drops_the_rows_that_come_again(configure, cpu, monkeypatch):
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
        file.write("7,0.")  # the row that was being written
    (config.out / "checkpoints" / ".step_00000006.x.part").mkdir()  # and the checkpoint
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
    assert [row["step"] for row in rows(config.out / "metrics.csv")] == ["4", "8"]  # (the last covers the steps of 6)


def test_last_checkpoints_are_kept_and_load(configure, cpu):
    config = configure(max_steps=7, checkpoint_every=1, keep=2, ema=True)
    result = train(config, cpu)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == ["step_00000006", "step_00000007"]
    model = hrm.load(config.out)  # the newest one, its averaged weights
    averaged = load_file(result.checkpoint / "ema.safetensors")
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in model.state_dict().items())
    config_json = json.loads((result.checkpoint / "config.json").read_text())
    assert TrainConfig.model_validate(config_json["training"]) == config
    # nothing left to do: the same checkpoint again, untouched
    before = (result.checkpoint / "state.json").stat().st_mtime_ns
    again = train(config.model_copy(update={"resume": True}), cpu)
    assert again.checkpoint == result.checkpoint and (again.checkpoint / "state.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("family", ["hrm", "trm"])
def test_evaluation_uses_the_averaged_weights(configure, cpu, monkeypatch, family):
    seen = []

    def evaluate(model, dataset, *, batch_size, max_examples, loss_type):
        assert (dataset.split, batch_size, max_examples) == ("test", 8, 3)
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return Metrics(
            exact_accuracy=0.5,
            accuracy=0.75,
            lm_loss=1.0,
            q_halt_accuracy=0.5,
            steps=2,
            count=3,
            puzzles_per_second=1.0,
        )

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    changes = {"max_steps": 5, "ema": True, "ema_rate": 0.5, "eval_interval": 1, "eval_max_examples": 3}
    changes["family"] = family
    result = train(configure(**changes), cpu)
    averaged = load_file(result.checkpoint / "ema.safetensors")
    trained = load_file(result.checkpoint / "model.safetensors")
    # an epoch is 24 puzzles of about 1.5 examples, 4 to 5 steps; the last evaluation is at the end
    assert len(seen) == 2 and result.evaluation.accuracy == 0.75
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in seen[-1].items())
    assert not torch.equal(trained["inner.lm_head.weight"], averaged["inner.lm_head.weight"])
    assert [row["step"] for row in rows(result.checkpoint.parents[1] / "evaluation.csv")] == ["4", "5"]


def test_it_learns_and_stops_when_solved(configure, cpu):
    config = configure(
        epochs=1000, lr=1e-2, log_every=5, early_stop_exact_accuracy=0.9, eval_interval=1000, arch={"hidden_size": 32}
    )
    result = train(config.model_copy(update={"max_steps": 1500}), cpu)
    assert result.reason == "solved" and 50 <= result.step < 1500
    last = rows(config.out / "metrics.csv")[-10:]
    finished = sum(int(row["finished"]) for row in last)
    exact = sum(float(row["exact_accuracy"]) * int(row["finished"]) for row in last if row["exact_accuracy"])
    assert exact >= 0.9 * finished
    assert result.evaluation.accuracy > 0.8  # the rule carries over to puzzles it has not seen


@pytest.mark.parametrize("arch", [{}, {"mlp_t": True, "pos_encodings": "none"}], ids=["attention", "mixing"])
def test_a_tiny_recursive_model_learns_and_is_loaded_to_be_measured(configure, cpu, arch):
    """What the trainer says of its averaged weights is what comes out for who loads the run."""
    config = configure(
        epochs=1000, lr=1e-2, eval_interval=1000, max_steps=300, family="trm", ema=True, ema_rate=0.95,
        arch={"hidden_size": 32, "expansion": 1.0} | arch,
    )  # fmt: skip
    result = train(config, cpu)
    assert result.evaluation.accuracy > 0.8
    model = hrm.load(config.out)
    assert isinstance(model, hrm.TRM) and model.config.mlp_t == bool(arch)
    measured = evaluate(model, open_dataset(config.data, "test"), batch_size=4)
    for name in ("accuracy", "exact_accuracy", "early_steps", "q_halt_accuracy"):
        assert getattr(measured, name) == pytest.approx(getattr(result.evaluation, name), abs=1e-6), name
    log = rows(config.out / "metrics.csv")
    assert all(float(row["q_continue_loss"]) == 0 for row in log) and float(log[-1]["loss"]) < float(log[0]["loss"]) / 2


def test_the_gradient_warms_up(configure, data, cpu):
    """From one update of each level to all six, in as many steps; afterwards as the configuration says."""
    run = Trainer(configure(gradient_warmup=10, arch={"gradient": "full", "L_cycles": 2}), cpu)
    found = []
    for _ in range(12):
        run.train_step()
        found.append(run.state.model.inner.gradient)
    assert found == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6, "full", "full"]
    run.close()
    config = configure("other", gradient_warmup=2, family="trm", arch={"gradient": "one_step"})
    model = config.model(open_dataset(data, "train").metadata, cpu.device)
    assert [gradient_mode(step, 2, model) for step in (1, 2, 3)] == [2, 2, "one_step"]


def test_the_gradient_may_change_within_a_run_and_a_family_may_not(configure, cpu, capsys):
    train(configure(max_steps=2), cpu)
    train(configure(max_steps=3, resume=True, arch={"gradient": "full", "recompute": True}), cpu)
    with pytest.raises(InputError, match="family was hrm and is trm"):
        train(configure(resume=True, family="trm"), cpu)


def test_a_checkpoint_from_before_there_were_families_is_resumed(configure, cpu):
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


def test_a_sharded_puzzle_embedding_in_one_process_is_the_whole_one(configure, cpu, monkeypatch):
    """Bit for bit; and either run goes on from the other's checkpoint, from a file of its own or not."""
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


def test_time_is_a_limit(configure, cpu):
    result = train(configure(max_minutes=1e-9, checkpoint_every=None), cpu)
    assert (result.step, result.reason) == (1, "limit") and result.checkpoint.name == "step_00000001"


@pytest.mark.parametrize("where", ["loss", "gradient", "puzzle rows"])
@pytest.mark.parametrize("log_every", [1, 50])
def test_a_number_that_is_not_finite_stops_the_run(configure, cpu, monkeypatch, where, log_every):
    real, calls = step_module.act_loss, []

    def spoiled(carry, outputs, loss_type):
        loss, metrics = real(carry, outputs, loss_type)
        calls.append(1)
        if len(calls) == 4:
            if where == "loss":
                loss = loss * float("inf")
            elif where == "gradient":
                outputs["logits"].register_hook(lambda grad: grad * float("nan"))
            else:
                run.state.model.puzzle_emb.local_weights.register_hook(lambda grad: grad * float("inf"))
        return loss, metrics

    monkeypatch.setattr(step_module, "act_loss", spoiled)
    run = Trainer(configure(checkpoint_every=2, log_every=log_every, max_steps=20), cpu)
    good = run.config.out / "checkpoints/step_00000002"
    with pytest.raises(TrainingError, match=f"step 4 is not finite; .*last good checkpoint is {good}"):
        run.run()
    run.close()
    assert [path.name for path in good.parent.iterdir()] == ["step_00000002"]
    assert run.state.step == 4  # noticed before the checkpoint of that step, or in its row of the log
    assert all(tensor.isfinite().all() for tensor in load_file(good / "model.safetensors").values())


@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_under_the_log_is_named(configure, cpu, monkeypatch, saved):
    run = Trainer(configure(max_steps=3, log_every=2, checkpoint_every=1 if saved else None), cpu)
    monkeypatch.setattr("hrm.training.loggers.CsvLog.append", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    way_out = "last good checkpoint is .*step_00000001; make room and resume" if saved else "there is no checkpoint yet"
    with pytest.raises(InputError, match=f"the log cannot be written in {run.config.out} .full.; .*{way_out}"):
        run.run()
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
def test_a_changed_value_of_the_state_is_noticed(configure, cpu, key, value):
    result = train(configure(max_steps=2), cpu)
    state = json.loads((result.checkpoint / "state.json").read_text())
    state = state | {key: value} if key != "puzzles" else state | {"data": state["data"] | {key: value}}
    (result.checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="is damaged .the contents of state.json have changed since it was written"):
        train(configure(max_steps=3, resume=True), cpu)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "puzzle_emb.safetensors", "config.json"])
def test_what_has_changed_in_a_checkpoint_is_noticed_by_load(configure, cpu, name):
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


def test_a_run_does_not_go_on_with_other_puzzles_of_the_same_shape(configure, cpu, tmp_path):
    config = configure(max_steps=2)
    train(config, cpu)
    again = config.model_copy(update={"max_steps": 3, "resume": True, "data": tmp_path / "other"})
    shutil.copytree(config.data, tmp_path / "other")
    labels = np.load(tmp_path / "other/train/all__labels.npy")
    np.save(tmp_path / "other/train/all__labels.npy", np.flip(labels, 1))
    with pytest.raises(InputError, match=f"the puzzles of data={tmp_path / 'other'} are not those it was trained on"):
        train(again, cpu)
    np.save(tmp_path / "other/train/all__labels.npy", labels.astype(np.int32))  # the same puzzles
    (tmp_path / "other/identifiers.json").write_text('["<blank>", "a", "c", "b"]')
    with pytest.raises(InputError, match="the names of the puzzle identifiers of data=.* are not those"):
        train(again, cpu)
    shutil.copy(config.data / "identifiers.json", tmp_path / "other")
    assert train(again, cpu).step == 3


def test_a_model_knows_its_puzzle_identifiers(configure, cpu, tmp_path):
    config = configure(max_steps=2)
    result = train(config, cpu)
    model = hrm.load(config.out)
    hrm.save(model, tmp_path / "saved")
    shutil.copytree(config.data, tmp_path / "other")
    (tmp_path / "other/identifiers.json").write_text('["<blank>", "a", "b", "d"]')
    ours, other = (open_dataset(folder, "test") for folder in (config.data, tmp_path / "other"))
    message = "other names other puzzle identifiers .* than the checkpoint was trained with.* --puzzle-emb mean"
    for one in (model, hrm.load(tmp_path / "saved")):
        evaluate(one, ours, batch_size=8)
        with pytest.raises(InputError, match=message):
            evaluate(one, other, batch_size=8)
    plain = train(configure("plain", max_steps=1, arch={"puzzle_emb_ndim": 0}), cpu)
    evaluate(hrm.load(plain.checkpoint), other, batch_size=8)

    begun = configure("begun", max_steps=1, init=str(result.checkpoint), data=tmp_path / "other", puzzle_emb_lr=0.0)
    with pytest.raises(InputError, match="trained on other puzzle identifiers .*; choose puzzle_emb=mean"):
        train(begun, cpu)
    rows = model.puzzle_emb.weights
    for choice, wanted in {"mean": rows.mean(0).expand_as(rows), "zero": 0 * rows, "keep": rows}.items():
        changed = begun.model_copy(update={"puzzle_emb": choice, "out": tmp_path / choice})
        found = hrm.load(train(changed, cpu).checkpoint)
        torch.testing.assert_close(found.puzzle_emb.weights, wanted)
        evaluate(found, other, batch_size=8)
        with pytest.raises(InputError, match="names other puzzle identifiers"):
            evaluate(found, ours, batch_size=8)


def test_two_runs_do_not_share_a_folder(configure, cpu):
    """Nor after the first has been killed: only a process that lives holds the lock."""
    config = configure(max_steps=2)
    run = Trainer(config, cpu)
    with pytest.raises(InputError, match="is not empty"):
        Trainer(config, cpu)
    again = config.model_copy(update={"resume": True})
    for _ in range(2):  # before its first checkpoint, and after it
        with pytest.raises(InputError, match=f"another run is training in out={config.out}; wait for its end"):
            train(again, cpu)
        run.train_step()
        run.save()
    os.close(run._folder._lock._descriptor)  # as the system does when a process is gone
    assert train(again.model_copy(update={"max_steps": 3}), cpu).step == 3
    with (config.out / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back


def test_a_folder_that_holds_only_a_lock_is_free(configure, cpu, monkeypatch):
    """And a run that is started at the same moment is refused, though the folder was free when both looked."""
    config = configure(max_steps=1)
    config.out.mkdir()
    (config.out / ".lock").touch()
    real, second = state_module.build, []

    def build(*arguments):
        if not second:
            second.append(None)
            second[0] = Trainer(config, cpu)
        return real(*arguments)

    monkeypatch.setattr(state_module, "build", build)
    with pytest.raises(InputError, match="another run is training in"):
        Trainer(config, cpu)
    assert second[0].run().step == 1
    second[0].close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_ends_the_run_with_a_checkpoint(configure, cpu, monkeypatch, number, ignored):
    """With ``ignored`` it came before the program ignoring SIGHUP, as nohup starts it."""
    before = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    real = Trainer.train_step

    def step(self):
        real(self)
        if self.state.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", step)
    try:
        result = train(configure(max_steps=4), cpu)
    finally:
        signal.signal(number, before)
    if ignored and number == signal.SIGHUP:
        assert (result.reason, result.step) == ("limit", 4)
    else:
        assert (result.reason, result.step, result.checkpoint.name) == ("interrupted", 2, "step_00000002")


@pytest.mark.parametrize("when", ["first line", "third step"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_closed_standard_output_ends_the_run_with_a_checkpoint(configure, cpu, monkeypatch, when, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    reader, writer = os.pipe()
    real = Trainer.train_step

    def step(self):
        real(self)
        if self.state.step == 3 and when == "third step":
            os.close(reader)

    if when == "first line":
        os.close(reader)
    monkeypatch.setattr(Trainer, "train_step", step)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        result = train(configure(max_steps=9, log_every=1), cpu)
        print("this goes nowhere, and fails nobody", flush=True)
        monkeypatch.undo()
    first = 1 if when == "first line" else 3
    last = first if terminal or when == "first line" else 9  # lines in a file are five seconds apart
    assert first <= result.step <= last and result.reason == "interrupted"
    assert int(result.checkpoint.name[5:]) == result.step and (result.checkpoint / "state.json").is_file()


def test_max_minutes_have_room_for_the_last_evaluation(configure, cpu, monkeypatch):
    """A step takes a minute, an evaluation ten; the first comes unexpected, after that there is room for one."""
    clock = [0.0]
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: clock[0])
    real = Trainer.train_step

    def step(self):
        real(self)
        clock[0] += 60

    def evaluate(*_, **__):
        clock[0] += 600
        return Metrics(
            exact_accuracy=0.5,
            accuracy=0.75,
            lm_loss=1.0,
            q_halt_accuracy=0.5,
            steps=2,
            count=3,
            puzzles_per_second=1.0,
        )

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    config = configure(eval_interval=1, max_minutes=30)  # an epoch is four steps
    result = train(config, cpu)
    assert result.reason == "limit" and clock[0] / 60 <= 31
    # 4 + 10 (an epoch), 4 + 10, 1, and ten for the end would be too many
    assert [row["step"] for row in rows(config.out / "evaluation.csv")] == ["4", "8"] and result.step == 8


def test_a_slow_first_step_is_told(configure, cpu, monkeypatch, capsys):
    run = Trainer(configure(max_steps=3, log_every=10), cpu)
    run.state.step = 1
    run._say_if_slow(2.0)
    assert "first step" not in capsys.readouterr().out
    run._say_if_slow(2.6)
    assert "first step: 2.6 s; the next line comes after 2 more (log_every)" in capsys.readouterr().out
    run.close()


def test_what_does_not_fit_is_refused_and_nothing_is_touched(configure, cpu, tmp_path):
    config = configure(max_steps=2)
    train(config, cpu)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    with pytest.raises(InputError, match=f"out={config.out} is not empty; add resume=true"):
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
    with pytest.raises(InputError, match=f"out={tmp_path} is not empty; choose another out="):
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


def test_a_changed_setting_is_mentioned(configure, cpu, capsys):
    train(configure(max_steps=2), cpu)
    train(configure(max_steps=3, lr=1e-3, resume=True), cpu)
    out = capsys.readouterr().out
    assert "step 2" in out and "lr is now 0.001, was 0.003" in out and "out is now" not in out


def test_a_full_disk_is_named(configure, cpu, monkeypatch):
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

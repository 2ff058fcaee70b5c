"""The training loop: what it computes, and why it stops."""

import dataclasses
import inspect
import os
import shutil
import signal
import sys

import pytest
import torch
from runs import rows
from safetensors.torch import load_file

import hrm
from hrm.data.batches import TrainingSampler
from hrm.data.format import open_dataset
from hrm.errors import InputError
from hrm.inference.evaluate import evaluate
from hrm.inference.metrics import Metrics
from hrm.training import clock as clock_module
from hrm.training import step as step_module
from hrm.training import trainer as trainer_module
from hrm.training.distributed import World
from hrm.training.runner import min_steps
from hrm.training.schedule import gradient_mode
from hrm.training.trainer import Trainer, TrainingError, train
from hrm_kernels.optim import AdamATan2, SparseSignSGD

METRICS = Metrics(
    exact_accuracy=0.5,
    accuracy=0.75,
    lm_loss=1.0,
    q_halt_accuracy=0.5,
    steps=2,
    count=3,
    puzzles_per_second=1.0,
)
"""What a stand-in for an evaluation returns."""


def test_a_run_equals_the_loop_written_by_hand(configure, cpu, data, tmp_path):
    """Eight steps against the same computation written out here."""
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
def test_init_starts_with_the_weights_of_another_run(configure, cpu, sharded):
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


def test_an_eqr_may_start_with_the_weights_of_a_trm(configure, cpu):
    first = train(configure("first", max_steps=1, family="trm"), cpu)
    begun = train(configure(max_steps=1, lr=0.0, family="eqr", init=str(first.checkpoint), puzzle_emb_lr=0.0), cpu)
    wanted, found = (hrm.load(one.checkpoint).state_dict() for one in (first, begun))
    assert wanted.keys() - found.keys() == {"inner.H_init", "inner.L_init"}
    assert found and all(torch.equal(found[name], wanted[name]) for name in found)


def test_init_refuses_models_that_do_not_fit(configure, cpu, tmp_path):
    first = train(configure("first", max_steps=1), cpu).checkpoint
    with pytest.raises(InputError, match="--init .*does not fit this run: inner.H_init is .16., expected .32."):
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


@pytest.mark.parametrize("family", ["hrm", "trm"])
def test_evaluation_uses_the_averaged_weights(configure, cpu, monkeypatch, family):
    seen = []

    def evaluate(model, dataset, *, batch_size, max_examples, loss_type):
        assert (dataset.split, batch_size, max_examples) == ("test", 8, 3)
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return METRICS

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    changes = {"max_steps": 5, "ema": True, "ema_rate": 0.5, "eval_interval": 1, "eval_max_examples": 3}
    changes["family"] = family
    result = train(configure(**changes), cpu)
    averaged = load_file(result.checkpoint / "ema.safetensors")
    trained = load_file(result.checkpoint / "model.safetensors")
    # an epoch is 24 puzzles of about 1.5 examples, 4 to 5 steps; the last evaluation comes at the end
    assert len(seen) == 2 and result.evaluation.accuracy == 0.75
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in seen[-1].items())
    assert not torch.equal(trained["inner.lm_head.weight"], averaged["inner.lm_head.weight"])
    assert [row["step"] for row in rows(result.checkpoint.parents[1] / "evaluation.csv")] == ["4", "5"]


def test_a_run_learns_and_stops_when_solved(configure, cpu):
    config = configure(
        epochs=1000, lr=1e-2, log_every=5, early_stop_exact_accuracy=0.9, eval_interval=1000, arch={"hidden_size": 32}
    )
    result = train(config.model_copy(update={"max_steps": 1500}), cpu)
    assert result.reason == "solved" and 50 <= result.step < 1500
    last = rows(config.out / "metrics.csv")[-10:]
    finished = sum(int(row["finished"]) for row in last)
    exact = sum(float(row["exact_accuracy"]) * int(row["finished"]) for row in last if row["exact_accuracy"])
    assert exact >= 0.9 * finished
    assert result.evaluation.accuracy > 0.8  # the rule generalises to unseen puzzles


def test_a_run_stops_when_an_evaluation_reaches_the_target(configure, cpu, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.9, 1.0])

    def evaluate(*_, **__):
        return dataclasses.replace(METRICS, exact_accuracy=next(accuracies))

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    result = train(configure(eval_interval=1, target_exact_accuracy=0.8, max_steps=60), cpu)
    assert result.reason == "reached" and str(result).startswith("target reached at step")
    measured = rows(result.checkpoint.parents[1] / "evaluation.csv")
    assert [float(row["exact_accuracy"]) for row in measured] == [0.5, 0.7, 0.9]
    assert int(measured[-1]["step"]) == result.step < 60
    with pytest.raises(ValueError, match="target_exact_accuracy needs evaluations during training; set eval_interval"):
        configure("never", eval_interval=None, target_exact_accuracy=0.8)


@pytest.mark.parametrize("arch", [{}, {"mlp_t": True, "pos_encodings": "none"}], ids=["attention", "mixing"])
def test_a_tiny_recursive_model_learns_and_evaluates_the_same_once_loaded(configure, cpu, arch):
    """The evaluation of the averaged weights during training equals one of the loaded run."""
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


def test_the_gradient_warms_up(configure, data, cpu):
    """From one update of each level to all six, then as configured."""
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


def test_max_minutes_stop_a_run(configure, cpu):
    result = train(configure(max_minutes=1e-9, checkpoint_every=None), cpu)
    assert (result.step, result.reason) == (1, "limit") and result.checkpoint.name == "step_00000001"


def test_max_minutes_leave_time_for_the_last_evaluation(configure, cpu, monkeypatch):
    """A step takes a minute, an evaluation ten. Nothing is known of the first; later ones are planned for."""
    clock = [0.0]
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: clock[0])
    real = Trainer.train_step

    def step(self):
        real(self)
        clock[0] += 60

    def evaluate(*_, **__):
        clock[0] += 600
        return METRICS

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    config = configure(eval_interval=1, max_minutes=30)  # an epoch is four steps
    result = train(config, cpu)
    assert result.reason == "limit" and clock[0] / 60 <= 31
    # after 4 + 10 (an epoch) and 4 + 10 minutes, another step and the last evaluation would take too long
    assert [row["step"] for row in rows(config.out / "evaluation.csv")] == ["4", "8"] and result.step == 8


def test_training_does_not_import_torchs_compiler(configure, cpu, monkeypatch):
    """The import would take half of the start of a run."""
    for method in ("add_param_group", "state_dict", "load_state_dict"):  # what an earlier call may have imported
        plain = inspect.unwrap(getattr(torch.optim.Optimizer, method))
        monkeypatch.delattr(plain, "__dynamo_disable", raising=False)
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    changes = {"ema": True, "eval_interval": 1, "eval_max_examples": 2}
    train(configure(max_steps=2, **changes), cpu)
    assert train(configure(max_steps=3, resume=True, **changes), cpu).step == 3
    with pytest.raises(ModuleNotFoundError):  # so nothing above came that way
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def test_a_slow_first_step_is_reported(configure, cpu, monkeypatch, capsys):
    run = Trainer(configure(max_steps=3, log_every=10), cpu)
    run.state.step = 1
    run._say_if_slow(2.0)
    assert "first step" not in capsys.readouterr().out
    run._say_if_slow(2.6)
    assert "first step: 2.6 s; the next line comes after 2 more (log_every)" in capsys.readouterr().out
    run.close()


@pytest.mark.parametrize("where", ["loss", "gradient", "puzzle rows"])
@pytest.mark.parametrize("log_every", [1, 50])
def test_a_number_that_is_not_finite_stops_the_run(configure, cpu, monkeypatch, where, log_every):
    real, calls = step_module.act_loss, []

    def spoiled(carry, outputs, *how):
        loss, metrics = real(carry, outputs, *how)
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
    assert run.state.step == 4  # found before the checkpoint of that step, or in its row of the log
    assert all(tensor.isfinite().all() for tensor in load_file(good / "model.safetensors").values())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_ends_the_run_with_a_checkpoint(configure, cpu, monkeypatch, number, ignored):
    """``ignored``: the program starts with the signal ignored, as nohup does with SIGHUP."""
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
        print("this is discarded, and raises no error", flush=True)
        monkeypatch.undo()
    first = 1 if when == "first line" else 3
    last = first if terminal or when == "first line" else 9  # a file gets a line every five seconds
    assert first <= result.step <= last and result.reason == "interrupted"
    assert int(result.checkpoint.name[5:]) == result.step and (result.checkpoint / "state.json").is_file()

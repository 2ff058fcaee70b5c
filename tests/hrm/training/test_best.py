"""The best checkpoint is kept beside the last ones, and is what a run stands for."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from runs import assert_same, contents, rows
from safetensors.torch import load_file
from tiny_sudoku import tiny

import hrm
from hrm.cli import main
from hrm.errors import InputError
from hrm.inference.metrics import Metrics
from hrm.locate import Best, locate, read_best
from hrm.training import trainer as trainer_module
from hrm.training.best import BestCheckpoint
from hrm.training.trainer import Trainer, train

METRICS = Metrics(
    exact_accuracy=0.5, accuracy=0.75, lm_loss=1.0, q_halt_accuracy=0.5, steps=2, count=3, puzzles_per_second=1.0
)


@pytest.fixture
def scores(monkeypatch):
    """A function that sets the exact accuracies of the evaluations, one after the other; lm_loss is 1 minus each."""

    def set_(*values: float) -> None:
        left = iter(values)

        def evaluate(*_, **__):
            value = next(left)
            return replace(METRICS, exact_accuracy=value, lm_loss=1 - value)

        monkeypatch.setattr(trainer_module, "evaluate", evaluate)

    return set_


def kept(run) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def evaluated_every_step(configure, **changes):
    """An epoch of 24 puzzles of 1 or 2 examples in batches of 40 is one step."""
    every = {"global_batch_size": 40, "eval_interval": 1, "checkpoint_every": 1, "keep": 2}
    return configure(**(every | changes))


def test_the_best_checkpoint_stays_and_is_the_one_that_loads(configure, cpu, scores, capsys):
    scores(0.0, 0.5, 0.25, 0.75, 0.75, 0.5, 0.25, 0.0)
    config = evaluated_every_step(configure, max_steps=8)
    result = train(config, cpu)
    assert result.best == Best(4, "exact_accuracy", 0.75)  # of two equal ones the earlier
    assert kept(config.out) == [4, 7, 8] and result.checkpoint.name == "step_00000008"
    assert json.loads((config.out / "best.json").read_text()) == {"step": 4, "metric": "exact_accuracy", "value": 0.75}
    assert str(result).endswith("; step 4, the best by exact_accuracy (0.7500)")
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if "the best so far" in line] == ["step 2", "step 4"]

    model = hrm.load(config.out)
    best = load_file(config.out / "checkpoints/step_00000004/model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    origin = f"{config.out}: step 4, the best by exact_accuracy (0.7500); the newest checkpoint is {result.checkpoint}"
    assert model.origin == origin and origin in repr(model)
    assert hrm.load(result.checkpoint).origin is None


def test_another_metric_or_none_can_choose(configure, cpu, scores):
    for metric, best, stays in (("lm_loss", 2, [2, 3, 4]), (None, None, [3, 4])):
        scores(0.1, 0.9, 0.2, 0.3)
        config = evaluated_every_step(configure, out=f"by-{metric}", max_steps=4, keep_best=metric)
        result = train(config, cpu)
        assert kept(config.out) == stays and (result.best.step if result.best else None) == best
        assert (config.out / "best.json").exists() == (metric is not None)
        assert locate(config.out).name == f"step_{best or 4:08d}"
    # another metric from here on: it starts over
    scores(0.7)
    by_loss = evaluated_every_step(configure, out="by-lm_loss", max_steps=5, resume=True)
    assert train(by_loss, cpu).best == Best(5, "exact_accuracy", 0.7) and kept(by_loss.out) == [4, 5]


def test_accuracies_of_zero_choose_no_checkpoint(configure, cpu, scores):
    scores(0.0, 0.0, float("nan"))
    config = evaluated_every_step(configure, max_steps=3)
    result = train(config, cpu)
    assert result.best is None and kept(config.out) == [2, 3] and locate(config.out) == result.checkpoint
    assert hrm.load(config.out).origin == f"{config.out}: step_00000003, the newest checkpoint"


def test_a_resumed_run_keeps_its_best_checkpoint(configure, cpu, scores):
    values = (0.1, 0.6, 0.2, 0.3, 0.4, 0.5)
    scores(*values)
    whole = train(evaluated_every_step(configure, out="whole", max_steps=6), cpu)
    scores(*values)
    train(evaluated_every_step(configure, out="parts", max_steps=3), cpu)
    parts = train(evaluated_every_step(configure, out="parts", max_steps=6, resume=True), cpu)
    assert whole.best == parts.best == Best(2, "exact_accuracy", 0.6)
    run = parts.checkpoint.parents[1]
    assert kept(run) == [2, 5, 6]
    assert_same(contents(whole.checkpoint), contents(parts.checkpoint))
    assert rows(run / "evaluation.csv") == rows(whole.checkpoint.parents[1] / "evaluation.csv")
    # the user removes it: the next evaluation starts over
    shutil.rmtree(run / "checkpoints/step_00000002")
    with pytest.raises(InputError, match=r"names the checkpoint of step 2, which does not exist; .*step_00000006"):
        hrm.load(run)
    scores(0.05)
    again = train(evaluated_every_step(configure, out="parts", max_steps=7, resume=True), cpu)
    assert again.best == Best(7, "exact_accuracy", 0.05)


@pytest.mark.parametrize("killed_in", ["write", "remove_old"])
def test_a_kill_leaves_a_best_checkpoint_that_exists(configure, cpu, scores, monkeypatch, killed_in):
    """Between the checkpoint and ``best.json``, and between ``best.json`` and the removal of the one before."""
    scores(0.1, 0.9)
    config = evaluated_every_step(configure, max_steps=9, keep=1, checkpoint_every=None)
    run = Trainer(config, cpu)
    run.train_step()
    run.evaluate()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        target = BestCheckpoint if killed_in == "write" else trainer_module
        patch.setattr(target, killed_in, killed)
        run.train_step()
        with pytest.raises(KeyboardInterrupt):
            run.evaluate()
    run.close()
    assert kept(config.out) == [1, 2]
    assert locate(config.out).name == f"step_0000000{1 if killed_in == 'write' else 2}"
    resumed = Trainer(config.model_copy(update={"resume": True}), cpu)
    assert read_best(config.out) == Best(2, "exact_accuracy", 0.9)
    resumed.train_step()
    resumed.save()
    resumed.close()
    assert kept(config.out) == [2, 3]


def test_the_last_evaluation_can_come_after_the_last_checkpoint(configure, cpu, scores):
    """It is then only in ``best.json``, which a resumed run reads as well."""
    config = evaluated_every_step(configure, max_steps=1, eval_interval=50)
    scores(0.5)
    assert train(config, cpu).best == Best(1, "exact_accuracy", 0.5)
    assert json.loads((config.out / "checkpoints/step_00000001/state.json").read_text())["best"] is None
    scores(0.4)
    again = train(config.model_copy(update={"max_steps": 4, "resume": True}), cpu)
    assert again.best == Best(1, "exact_accuracy", 0.5) and kept(config.out) == [1, 3, 4]


def test_wrong_metrics_and_files_are_refused(configure, cpu):
    with pytest.raises(ValueError, match="keep_best"):
        configure(keep_best="exact")
    with pytest.raises(InputError, match="keep_best is ARC/pass@2, which only .* set keep_best=exact_accuracy"):
        train(configure(keep_best="ARC/pass@2", eval_interval=1), cpu)
    config = configure(max_steps=1)
    train(config, cpu)
    for text in ("[]", '{"step": "1", "metric": "accuracy", "value": 1}'):
        (config.out / "best.json").write_text(text)
        with pytest.raises(InputError, match="best.json does not tell the best checkpoint; remove it"):
            hrm.load(config.out)


def test_commands_say_which_checkpoint_they_use(tmp_path, monkeypatch, capsys):
    for step in (3, 7):
        hrm.save(tiny(), tmp_path / f"run/checkpoints/step_{step:08d}")
    (tmp_path / "run/best.json").write_text('{"step": 3, "metric": "accuracy", "value": 0.5}')
    monkeypatch.setattr(sys, "argv", ["hrm", "solve", str(tmp_path / "run"), "..1.3.......12..", "--json"])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    newest = tmp_path / "run/checkpoints/step_00000007"
    assert err == f"hrm: {tmp_path / 'run'}: step 3, the best by accuracy (0.5000); the newest checkpoint is {newest}\n"
    assert json.loads(out)["puzzle"] == "..1.3.......12.."

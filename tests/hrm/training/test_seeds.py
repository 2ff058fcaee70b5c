"""Several seeds in one command: each run is the one its seed gives, and no run is lost by another."""

import json
import math
import statistics

import pytest
from runs import assert_same, contents

import hrm
from hrm.errors import InputError
from hrm.training import seeds as seeds_module
from hrm.training import trainer as trainer_module
from hrm.training.seeds import SeedRun, SeedRuns, train_seeds
from hrm.training.trainer import Trainer, TrainingError, train


def test_each_run_is_the_one_its_seed_gives_by_itself(configure, cpu, capsys):
    config = configure("all", max_steps=4, eval_interval=1, seed=5, seeds=2)
    result = train_seeds(config, cpu)
    assert [(run.seed, run.reason, run.step) for run in result.runs] == [(5, "limit", 4), (6, "limit", 4)]
    single = train(configure("one", max_steps=4, eval_interval=1, seed=6), cpu)
    assert_same(contents(single.checkpoint), contents(config.out / "seed-6/checkpoints/step_00000004"))
    assert result.runs[1].metrics["lm_loss"] == pytest.approx(single.evaluation.lm_loss)
    assert result.runs[0].metrics["lm_loss"] != result.runs[1].metrics["lm_loss"]
    assert "seed 6 (2 of 2)" in capsys.readouterr().out
    # nothing is run again; with other settings all are resumed
    resumed = config.model_copy(update={"resume": True})
    assert train_seeds(resumed, cpu) == result and "seed 6" not in capsys.readouterr().out
    longer = train_seeds(resumed.model_copy(update={"max_steps": 5}), cpu)
    assert [run.step for run in longer.runs] == [5, 5] and "resumed from" in capsys.readouterr().out


def test_a_failing_run_is_named_and_the_others_are_not_lost(configure, cpu, monkeypatch):
    config = configure("all", max_steps=2, seeds=3)
    real = Trainer.train_step

    def step(self):
        if self.config.seed == 1:
            raise TrainingError("the loss is not finite")
        real(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    result = train_seeds(config, cpu)
    assert [run.reason for run in result.runs] == ["limit", "failed", "limit"]
    assert [run.seed for run in result.failed] == [1] and len(result.values("loss")) == 2
    assert str(result).splitlines()[-1] == "seed 1 failed: the loss is not finite"
    monkeypatch.undo()
    # it had no checkpoint yet, so it starts over
    again = train_seeds(config.model_copy(update={"resume": True}), cpu)
    assert not again.failed and again.runs[::2] == result.runs[::2]
    single = train(configure("one", max_steps=2, seed=1), cpu)
    assert_same(contents(single.checkpoint), contents(config.out / "seed-1/checkpoints/step_00000002"))


def test_an_interrupted_run_is_continued_before_the_next_ones(configure, cpu, monkeypatch):
    config = configure("all", max_steps=3, seeds=3)
    monkeypatch.setattr(Trainer, "_reason_to_stop", lambda self: "interrupted" if self.config.seed == 1 else None)
    stopped = train_seeds(config, cpu)
    assert stopped.is_interrupted and [run.step for run in stopped.runs] == [3, 1]
    monkeypatch.undo()
    result = train_seeds(config.model_copy(update={"resume": True}), cpu)
    assert [(run.seed, run.step, run.reason) for run in result.runs] == [(seed, 3, "limit") for seed in range(3)]
    whole = train(configure("one", max_steps=3, seed=1), cpu)
    assert_same(contents(whole.checkpoint), contents(config.out / "seed-1/checkpoints/step_00000003"))


def test_what_no_seed_can_run_is_an_error_at_once(configure, cpu, tmp_path):
    with pytest.raises(InputError, match="does not exist; make one"):
        train_seeds(configure("all", seeds=2, data=tmp_path / "nowhere"), cpu)
    config = configure("all", max_steps=1, seeds=1)
    train_seeds(config, cpu)
    with pytest.raises(InputError, match="is not a new or empty folder; add --resume to continue its runs"):
        train_seeds(config, cpu)
    train(configure("single", max_steps=1), cpu)
    with pytest.raises(InputError, match="is the folder of a single run; resume it without --seeds"):
        train_seeds(configure("single", seeds=2, resume=True), cpu)
    (config.out / "seeds.json").write_text("{}")
    with pytest.raises(InputError, match="does not hold the results of several seeds; remove it"):
        train_seeds(config.model_copy(update={"resume": True}), cpu)


def test_the_table_has_mean_and_spread(tmp_path):
    values = (0.5, 0.25, 0.75)
    runs = [SeedRun(seed, "done", 9, {"exact_accuracy": v}, v + 0.1, seed + 1) for seed, v in enumerate(values)]
    runs.append(SeedRun(3, "failed", None, {}, error="no space left"))
    result = SeedRuns(tmp_path, tuple(runs), "exact_accuracy")
    assert result.mean("exact_accuracy") == 0.5 and result.spread("exact_accuracy") == statistics.stdev(values) == 0.25
    assert math.isnan(SeedRuns(tmp_path, tuple(runs[:1]), None).spread("exact_accuracy"))
    table = [line.split() for line in str(result).splitlines()]
    assert table[0] == ["seed", "step", "exact_accuracy", "best", "exact_accuracy", "at", "step", "ended"]
    assert table[1] == ["0", "9", "0.5000", "0.6000", "1", "done"]
    assert table[4] == ["3", "-", "-", "-", "-", "failed"]
    assert table[5] == ["mean", "0.5000", "0.6000"] and table[6] == ["spread", "0.2500", "0.2500"]


def test_an_unexpected_error_is_named_with_its_traceback(configure, cpu, monkeypatch, capsys):
    """``hrm.train(seeds=...)`` returns all runs; an error that is no input error comes with its traceback."""
    config = configure("all", max_steps=1)
    arguments = {"data": config.data, "out": config.out, "device": "cpu", "arch": config.arch, "max_steps": 1}
    monkeypatch.setattr(trainer_module, "write_checkpoint", lambda *_: 1 / 0)
    result = hrm.train("demo", **arguments, seeds=2)
    assert isinstance(result, seeds_module.SeedRuns) and len(result.failed) == 2
    assert result.failed[0].error == "division by zero" and "Traceback" in capsys.readouterr().err
    assert json.loads((config.out / "seeds.json").read_text())["runs"][1]["error"] == "division by zero"

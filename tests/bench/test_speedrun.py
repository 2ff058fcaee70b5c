"""The speedrun: a target is trained to for each seed, and the page tells what came of it."""

import json

import pytest

from bench.speedrun import __main__ as speedrun
from hrm.training.config import load_config


@pytest.fixture
def target(tmp_path, monkeypatch):
    """A target that a tiny model reaches at once."""
    (tmp_path / "tiny.yaml").write_text(
        "title: 4 x 4 Sudoku\ndata: sudoku --size 4 --train 20 --test 10 --seed 1\n"
        "target_exact_accuracy: 1.0e-9\nbase: demo\nepochs: 1000\neval_interval: 1\nmax_steps: 3\nlog_every: 1\n"
        "global_batch_size: 8\narch: {hidden_size: 8, halt_max_steps: 2}\n"
    )
    monkeypatch.setattr(speedrun, "HERE", tmp_path)
    monkeypatch.setattr(speedrun, "RESULTS", tmp_path / "results")
    return tmp_path


def test_a_target_is_run_and_told(target):
    out = target / "results" / "speedrun-cpu-2026-01-01"
    out.mkdir(parents=True)
    speedrun.run("tiny", [5], target / "work", out)
    result = json.loads((out / "tiny.json").read_text())
    assert result["data"] == "hrm data sudoku --size 4 --train 20 --test 10 --seed 1"
    assert [(run["seed"], run["steps"], run["count"]) for run in result["runs"]] == [(5, 3, 10)]
    result["runs"] = [
        {
            "seed": seed,
            "seconds": seconds,
            "cpu_seconds": seconds / 2,
            "steps": 9,
            "exact_accuracy": accuracy,
            "count": 10,
        }
        for seed, seconds, accuracy in ((1, 100, 0.97), (2, 200, 0.96), (3, 300, 0.5))
    ]
    result["target"] = 0.95
    (out / "tiny.json").write_text(json.dumps(result))
    row = next(line for line in speedrun.page().splitlines() if line.startswith("| 4 x 4 Sudoku"))
    assert "3.3 min ± 100 s, 1 of 3 missed the target" in row
    assert "97.0 % after 100 s; 96.0 % after 3.3 min; 50.0 % after 5.0 min" in row


def test_what_has_not_run_is_said(target):
    rows = speedrun.page().splitlines()
    assert any(row.startswith("| 4 x 4 Sudoku, 0 % | not yet run") for row in rows)
    assert sum("not yet run |  | a GPU" in row for row in rows) == len(speedrun.PUBLISHED)


@pytest.mark.parametrize("name", speedrun.targets())
def test_each_target_is_a_recipe_that_stops(name, tmp_path):
    lines = (speedrun.HERE / f"{name}.yaml").read_text().splitlines(keepends=True)
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(line for line in lines if not line.startswith(("title:", "data:"))))
    config = load_config(str(path), ["data=somewhere"])
    assert (config.target_exact_accuracy or 0) >= 0.95 and config.eval_max_examples == 1000

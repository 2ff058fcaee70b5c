"""The plan counts what a published recipe costs on GPUs."""

import pytest

from bench import plan
from bench.counts import Model, all_reduce_bytes
from bench.gpus import GPUS
from hrm.config import HRMConfig


def test_plan_of_the_published_sudoku_recipe(capsys):
    assert plan.main(["--task", "sudoku", "--gpus", "8", "--batch", "768"]) == 0
    text = capsys.readouterr().out
    assert "768 rows of 82 positions on 8 GPUs, 26,042 steps; 27.28 M parameters" in text
    config = HRMConfig(seq_len=81, vocab_size=11, puzzle_emb_ndim=512)
    model, gpu = Model(config), GPUS["H200"]
    step = plan.training_step(model, gpu, 1, 384, fused=True, reached=True)
    assert step.arithmetic == pytest.approx(64 * 384 * 82 * (2 * 3_407_872 + 4 * 82 * 512) / 790e12)
    assert model.moved_bytes(True) == pytest.approx(20e3, rel=0.05) and model.moved_bytes(False) == 36 * 1024
    assert all_reduce_bytes(model, 1, 384) == 0
    assert all_reduce_bytes(model, 2, 1) == 4 * 27_275_266 + 4 * 512 + 8
    # every GPU has the same number of rows: only the all-reduce grows
    assert plan.training_step(model, gpu, 8, 3072, True, True).arithmetic == step.arithmetic


def test_plan_of_a_million_identifiers_and_of_too_few_rows(capsys):
    assert plan.main(["--task", "arc-1", "--gpus", "8", "--identifiers", "1000000"]) == 0
    assert "- puzzle embedding: 2.05 GB (0.256 GB with puzzle_emb_sharded=true)" in capsys.readouterr().out
    assert plan.main(["--gpus", "1000"]) == 2
    assert "expected at least one GPU, and a row for each" in capsys.readouterr().err

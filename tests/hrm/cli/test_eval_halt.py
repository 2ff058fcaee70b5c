import json

import numpy as np
import pytest

import hrm
from hrm.data.sudoku import Difficulty, generate


@pytest.fixture
def data(tmp_path):
    puzzles = generate(40, 4, np.random.default_rng(5), Difficulty(extra_clues=4))
    hrm.write_dataset(
        tmp_path / "data", {"test": (puzzles.inputs, puzzles.labels)}, vocab_size=6, seq_len=16, task="sudoku"
    )
    return tmp_path / "data"


def test_halting_early_takes_fewer_segments(call, data):
    early, fixed = (
        json.loads(call("eval", "sudoku4", "--data", data, "--json", *options)[1]) for options in (["--halt", "q"], [])
    )
    assert early["steps"] < fixed["steps"] == 16
    expected = hrm.evaluate("sudoku4", data, halt="q").as_dict()
    assert early.keys() == expected.keys()
    assert all(early[name] == expected[name] for name in early if name != "puzzles_per_second")


def test_a_shipped_model_is_calibrated(call, data):
    metrics = json.loads(call("eval", "sudoku4", "--data", data, "--json", "--halt", "calibrated")[1])
    assert metrics["steps"] < 4 and metrics["exact_accuracy"] > 0.9

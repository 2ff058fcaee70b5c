import json

import numpy as np
import pytest

from hrm.data.format import SetBuilder, write_dataset
from hrm.data.sudoku import generate


@pytest.fixture
def data(tmp_path):
    puzzles, builder = generate(40, 4, np.random.default_rng(5), extra_clues=4), SetBuilder()
    builder.add_puzzles(puzzles.inputs, puzzles.labels)
    write_dataset(tmp_path / "data", {"test": {"all": builder}}, vocab_size=6, seq_len=16, task="sudoku")
    return f"data={tmp_path / 'data'}"


def test_halt_is_a_setting_as_well_as_an_option(call, data):
    found = [json.loads(call("eval", "sudoku4", data, "--json", *how)[1]) for how in (["halt=q"], ["--halt", "q"], [])]
    assert found[0]["steps"] == found[1]["steps"] < found[2]["steps"] == 16
    assert found[0]["exact_accuracy"] == found[1]["exact_accuracy"]
    code, _, err = call("eval", "sudoku4", data, "halt=q", "--halt", "fixed")
    assert code == 2 and "got halt=q and --halt fixed; give one" in err


def test_a_shipped_model_is_calibrated(call, data):
    found = json.loads(call("eval", "sudoku4", data, "--json", "halt=calibrated")[1])
    assert found["steps"] < 4 and found["exact_accuracy"] > 0.9

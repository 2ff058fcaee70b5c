import numpy as np
import pytest
from tiny_sudoku import tiny, write_data

from hrm import InputError, load, save
from hrm.data.format import open_dataset
from hrm.inference.calibrate import calibrate, choose
from hrm.inference.evaluate import evaluate
from hrm.inference.halting import parse_halting


def test_choosing_a_threshold():
    # Puzzle 0 is right from segment 1, puzzle 1 from segment 2; puzzle 2 is right in the end, but confident before.
    margins = np.array([[1.0, -2.0, 0.5], [2.0, 0.8, 0.6], [2.0, 2.0, 3.0]])
    right = np.array([[True, False, False], [True, True, False], [True, True, True]])
    found = choose(margins, right)
    assert found.chosen.exact_accuracy == found.fixed.exact_accuracy == 1
    assert (found.chosen.threshold, found.chosen.mean_steps) == (pytest.approx(0.6), 2)  # segments 1, 2, 3
    assert (found.by_q.exact_accuracy, found.by_q.mean_steps) == (pytest.approx(2 / 3), pytest.approx(4 / 3))
    assert choose(margins, right, loss=0.34).chosen.mean_steps == pytest.approx(4 / 3)


def test_the_threshold_is_as_accurate_as_q_where_later_segments_lose_answers():
    margins = np.array([[1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    right = np.array([[True, False], [False, True], [False, True]])
    found = choose(margins, right)
    assert (found.fixed.exact_accuracy, found.by_q.exact_accuracy, found.chosen.exact_accuracy) == (0.5, 1, 1)


def test_a_calibration_holds_in_evaluation(tmp_path, told):
    write_data(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data", "test")
    save(tiny(), tmp_path / "model")
    with pytest.raises(InputError, match="has not been calibrated"):
        parse_halting("calibrated", tmp_path / "model")
    found = calibrate(tiny(), dataset, slots=6, progress=told)
    assert told.ends == {"calibrating": (found.count, found.count)}
    found.save(tmp_path / "model", "test")
    metrics = evaluate(
        load(tmp_path / "model"), dataset, batch_size=6, halt=parse_halting("calibrated", tmp_path / "model")
    )
    assert metrics.exact_accuracy == pytest.approx(found.chosen.exact_accuracy)
    assert metrics.steps == pytest.approx(found.chosen.mean_steps)
    assert metrics.exact_accuracy >= evaluate(tiny(), dataset, batch_size=6).exact_accuracy - 1e-9
    assert (tmp_path / "model" / "halting.png").read_bytes().startswith(b"\x89PNG")

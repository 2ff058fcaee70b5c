import numpy as np
import pytest
from tiny_sudoku import tiny, write_data

from hrm import InputError, load, save
from hrm.data.format import open_dataset
from hrm.inference.calibrate import calibrate, choose
from hrm.inference.engine import Engine
from hrm.inference.evaluate import evaluate
from hrm.inference.halting import AnyOf, FixedPoint, check_halting, halts_by_q, parse_halting


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


def test_choosing_a_threshold_on_residuals():
    # Puzzle 0 comes to rest where it is right; puzzle 1 rests on a wrong answer before it is right.
    residuals = np.array([[1.0, 1.0], [0.3, 0.4], [0.2, 0.2], [0.1, 0.3], [0.1, 0.1], [0.1, 0.1]])
    right = np.array([[False, False], [False, False], [True, False], [True, False], [True, True], [True, True]])
    margins = np.where(np.arange(6)[:, None] == [2, 9], 1.0, -1.0)
    found = choose(margins, right, residuals=residuals)
    assert (found.rule, found.chosen.exact_accuracy, found.chosen.mean_steps) == ("residual", 1, 5)
    # the larger of two in a row: 0.2 for puzzle 0 at segment 4, 0.3 for puzzle 1 at segment 5
    rule = parse_halting(found.halt)
    assert rule == FixedPoint(found.chosen.threshold) and 0.1 < found.chosen.threshold <= 0.3
    beside = choose(margins, right, residuals=residuals, with_q=True)
    assert beside.rule == "q|residual" and (beside.chosen.mean_steps, beside.by_q.mean_steps) == (4.5, 4.5)
    assert "| q | - | " in str(beside) and parse_halting(beside.halt).rules[1] == FixedPoint(beside.chosen.threshold)


@pytest.mark.parametrize("rule", ["residual", "q|residual"])
def test_a_calibrated_residual_holds_in_evaluation(tmp_path, rule):
    write_data(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data", "test")
    save(tiny(), tmp_path / "model")
    found = calibrate(tiny(), dataset, rule=rule, slots=6)
    found.save(tmp_path / "model", "test")
    halt = parse_halting("calibrated", tmp_path / "model")
    assert halt == parse_halting(found.halt)
    metrics = evaluate(load(tmp_path / "model"), dataset, batch_size=6, halt=halt)
    assert metrics.exact_accuracy == pytest.approx(found.chosen.exact_accuracy)
    assert metrics.steps == pytest.approx(found.chosen.mean_steps)
    with pytest.raises(InputError, match="rule is 'luck', expected one of margin, residual"):
        calibrate(tiny(), dataset, rule="luck")


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


def test_auto_is_the_calibrated_rule_where_there_is_one(tmp_path):
    folder = tmp_path / "model"
    save(tiny(), folder)
    assert load(folder).folder == folder
    assert parse_halting("auto") is parse_halting("auto", folder) is halts_by_q
    (folder / "halting.json").write_text('{"threshold": 0.25, "rule": "q|residual"}')
    rule = AnyOf((halts_by_q, FixedPoint(0.25)))
    assert parse_halting("auto", folder) == parse_halting("calibrated", folder) == rule
    with Engine(load(folder), slots=1) as engine, Engine(load(folder), slots=1, halt="q") as by_q:
        assert (engine.halting, by_q.halting) == (rule, halts_by_q)
    with Engine(load("sudoku9"), slots=1) as engine:
        assert engine.halting == parse_halting("calibrated", "sudoku9")


def test_a_rule_for_a_model_that_must_be_downloaded_is_checked_later(tmp_path):
    check_halting("calibrated", "owner/model-of-the-hub")
    save(tiny(), tmp_path / "model")
    for source in (tmp_path / "model", "sudoku4"):
        with pytest.raises(InputError, match="expected 'q', 'fixed'"):
            check_halting("sometimes", source)

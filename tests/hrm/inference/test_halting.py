"""Rules of halting and their combinations, on constructed moments and in the engine."""

import numpy as np
import pytest
from engine_rows import run_alone, tiny

import hrm
from hrm import Engine, InputError
from hrm.data.sudoku import Sudoku, generate
from hrm.inference.halting import AllOf, AnyOf, FixedPoint, Moment, halts_by_q, needs, parse_halting

TASK = Sudoku(4)


def moment():
    """Four rows: halts by Q; states at rest for two segments; for one; neither, but verified."""
    inf = np.inf
    residuals = np.array([[inf, inf, 0.9], [0.4, 0.009, 0.004], [0.4, 0.02, 0.004], [0.1, 0.1, 0.1]], np.float32)
    q_halt, unchanged = np.array([1, -1, -1, -1], np.float32), np.array([-1, 2, 0, 1])
    tokens, zero = np.zeros((4, 16), int), np.zeros(4, np.float32)
    return Moment(np.array([1, 5, 5, 5]), tokens, unchanged, q_halt, zero, residuals, np.arange(4) == 3)


@pytest.mark.parametrize(
    ("halt", "rows"),
    [
        ("q", [0]),
        ("residual:0.01", [1]),
        ("residual:0.01:1", [1, 2]),
        ("residual:0.2:3", [3]),
        ("check", [3]),
        ("q|residual:0.01", [0, 1]),
        ("q | check", [0, 3]),
        ("residual:0.2&stable:1", [1, 3]),
        ("q|residual:0.2&stable:2", [0, 1]),
        ("stable:1|margin:-2&residual:0.01:1", [1, 2, 3]),
    ],
)
def test_rules_and_combinations(halt, rows):
    assert np.flatnonzero(parse_halting(halt)(moment())).tolist() == rows


def test_what_rules_need_is_all_that_is_computed():
    assert needs(parse_halting("q|margin:1")) == (False, 0, False)
    assert needs(parse_halting("q|residual:0.1:4&residual:0.2")) == (False, 4, False)
    assert needs(parse_halting("stable:2|check")) == (True, 0, True)
    assert needs(lambda moment: moment.steps > 3) == (True, 0, False)
    assert parse_halting("q|residual:0.1&q") == AnyOf((halts_by_q, AllOf((FixedPoint(0.1), halts_by_q))))


@pytest.mark.parametrize(
    "halt", ["residual", "residual:", "residual:0", "residual:-1", "residual:nan", "residual:1:0", "q|", "q&x"]
)
def test_rules_that_are_refused(halt):
    with pytest.raises(InputError, match="expected 'q', 'fixed', 'stable:K'.*'residual:EPS'.*'check'"):
        parse_halting(halt)


def test_the_check_needs_a_task_that_verifies():
    for halt in ("check", "q|check"):
        with pytest.raises(InputError, match="halt 'check' needs a task that verifies answers"):
            Engine(tiny(), halt=halt)


def test_halting_at_a_fixed_point(puzzles):
    """Each row halts where its own states have come to rest, beside rows that start later."""
    with Engine(tiny(), 3, 8, halt=FixedPoint(0.0)) as engine:  # no residual is below 0, but all are measured
        traces = [one.trace for one in engine.solve(puzzles[:6], trace=True)]
    residuals = np.array([[frame.residual for frame in trace] for trace in traces])
    larger = np.maximum(residuals[:, 1:], residuals[:, :-1])
    threshold = float(np.quantile(larger, 0.3))
    low = np.pad(larger < threshold, ((0, 0), (1, 0)))
    low[:, -1] = True
    with Engine(tiny(), 3, 8, halt=f"residual:{threshold}") as engine:
        steps = [one.steps for one in engine.solve(puzzles[:6])]
    assert steps == (low.argmax(1) + 1).tolist() and len(set(steps)) > 2


def test_halting_when_the_answer_is_verified():
    model, inputs = hrm.load("sudoku4"), generate(8, 4, np.random.default_rng(4)).inputs
    with Engine(model, 3, 8, halt="check", task=TASK) as engine:
        results = list(engine.solve(inputs))
    for result, puzzle in zip(results, inputs, strict=True):
        frames = run_alone(model, hrm.inference.engine.Puzzle(puzzle), steps=8)
        right = [TASK.check(puzzle, tokens) is None for tokens, *_ in frames]
        assert result.verified and result.steps == right.index(True) + 1

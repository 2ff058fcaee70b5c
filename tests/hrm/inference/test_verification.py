"""Answers that a caller can rely on: verified, refused, or not given."""

import math

import numpy as np
import pytest
from tiny_sudoku import tiny

import hrm
from hrm import Engine, InputError
from hrm.data.arc import Arc
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku, generate

TASK = Sudoku(4)
SOLVED = "1234341221434321"


@pytest.fixture(scope="module")
def model():
    return hrm.load("sudoku4")


def test_right_answers_are_verified_and_wrong_ones_have_a_reason(model):
    puzzles = generate(6, 4, np.random.default_rng(0)).inputs
    with Engine(model, slots=4, task=TASK) as engine:
        right = list(engine.solve(puzzles))
    with Engine(tiny(), slots=4, task=TASK) as engine:
        wrong = list(engine.solve(puzzles))
    for one, bad, inputs in zip(right, wrong, puzzles, strict=True):
        assert (one.verified, one.reason) == (True, None) and TASK.check(inputs, one.tokens) is None
        assert bad.verified is False and bad.reason == TASK.check(inputs, bad.tokens) and bad.error is None
    assert "verified=True" in repr(right[0])
    with Engine(model, slots=4) as engine:
        assert [one.verified for one in engine.solve(puzzles)] == [None] * 6


def test_an_engine_that_abstains_gives_no_wrong_answer():
    puzzles = generate(4, 4, np.random.default_rng(0)).inputs
    with Engine(tiny(), slots=4, task=TASK) as engine:
        plain = list(engine.solve(puzzles))
    with Engine(tiny(), slots=4, task=TASK, abstain=True) as engine:
        results = list(engine.solve(puzzles))
    assert [len(one.tokens) for one in results] == [0] * 4
    assert [(one.reason, one.steps, one.q_halt) for one in results] == [
        (one.reason, one.steps, one.q_halt) for one in plain
    ]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "abstain needs a task that verifies answers; give task="),
        (Arc(), "abstain needs a task that verifies answers, and the check of arc sees only their form"),
        (Sudoku(9), "the task sudoku has vocab_size 11 and seq_len 81, the model 6 and 16"),
    ],
)
def test_tasks_that_cannot_verify(task, message):
    with pytest.raises(InputError, match=message):
        Engine(tiny(), task=task, abstain=True)


def test_a_solved_board_is_returned_at_once(gate):
    with Engine(gate(), slots=1, task=TASK) as engine:  # the model has no permit: a segment would wait for ever
        (result,) = engine.solve([TASK.parse(SOLVED)])
        assert engine.submit(TASK.parse(SOLVED)).result(timeout=60).tokens.tolist() == result.tokens.tolist()
        (listed,) = engine.solve([TASK.parse(SOLVED).tolist()], ordered=False)
    assert (result.steps, result.verified, result.confidence, result.tokens.dtype) == (0, True, 1.0, np.uint8)
    assert TASK.format(result.tokens) == TASK.format(listed.tokens) == SOLVED


def test_an_impossible_puzzle_is_reported(model):
    puzzles = [TASK.parse(text) for text in ("123....4........", "..1.3.......12..")]
    repeated = puzzles[0].copy()
    repeated[3] = 2
    with Engine(model, slots=2, task=TASK) as engine:
        first, second, third = engine.solve([*puzzles, repeated])
        with pytest.raises(InputError, match="the puzzle has no solution: no digit fits at row 1 column 4"):
            engine.submit(puzzles[0]).result(timeout=60)
    assert str(first.error) == "the puzzle has no solution: no digit fits at row 1 column 4"
    assert (first.verified, len(first.tokens), second.verified, third.reason) == (False, 0, True, "row 1 has 1 twice")


@pytest.mark.parametrize("name", ["sudoku4", "sudoku6"])
def test_boards_with_one_empty_cell_are_solved(name):
    size = int(name[-1])
    (label,) = generate(1, size, np.random.default_rng(5)).labels
    puzzles = np.where(np.eye(size * size, dtype=bool), 1, label)[::5].astype(np.uint8)
    assert all((one.answer == label).all() and one.verified for one in hrm.solve(name, puzzles))


def test_a_task_whose_check_fails_does_not_end_the_engine(model):
    class Broken(Sudoku):
        def check(self, inputs, answer):
            if inputs[2] == 2:
                raise ZeroDivisionError("the check is broken")
            return super().check(inputs, answer)

    puzzles = [TASK.parse(text) for text in ("..1.3.......12..", "3...4..1...3..1.")]
    with Engine(model, slots=2, task=Broken(4)) as engine:
        broken, good = [engine.submit(one) for one in puzzles]
        assert good.result(timeout=60).verified
        with pytest.raises(ZeroDivisionError):
            broken.result(timeout=60)


def test_solutions_of_solved_impossible_and_unsolved_puzzles():
    texts = [SOLVED, "123....4........", "..1.3.......12.."]
    solved, impossible, wrong = hrm.solve(tiny(), texts, task=TASK, abstain=True)
    assert (solved.valid, solved.verified, solved.steps, TASK.format(solved.answer)) == (True, True, 0, SOLVED)
    assert (impossible.valid, impossible.answered, len(impossible.answer), impossible.steps) == (False, False, 0, 0)
    assert impossible.reason == "the puzzle has no solution: no digit fits at row 1 column 4"
    assert (wrong.answered, wrong.verified, len(wrong.frames)) == (False, False, wrong.steps)
    assert repr(wrong).startswith(f"Solution(no answer: {wrong.reason}, {wrong.steps} segment")
    assert str(wrong).startswith(TASK.render(wrong.inputs)) and math.isinf(solved.q_halt)


def test_a_maze_without_a_way():
    task = Maze(5)
    maze = task.parse("S  # ## ##   ##   #G #   ")
    assert task.impossible(maze) is None and not task.is_solved(maze)
    shut = task.parse("S #   #  ### #  #  #G#   ")
    assert task.impossible(shut) == "there is no way from S to G"
    assert task.is_solved(task.parse("SG" + " " * 23)) and not task.is_solved(task.parse("S" + " " * 23 + "G"))
    assert task.is_solved(task.parse("SoG" + " " * 22)) and not task.is_solved(task.parse("SoGo" + " " * 21))

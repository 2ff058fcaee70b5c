"""Tasks of one's own: the defaults of PuzzleTask, and how they are registered."""

import numpy as np
import pytest

from hrm.data import TASKS, register_task, task_of
from hrm.data.arc import Arc, ArcTask
from hrm.data.maze import Maze
from hrm.data.puzzles import Puzzles
from hrm.data.sudoku import Sudoku, solve
from hrm.data.task import Cell, PuzzleTask
from hrm.errors import InputError


class Sort(PuzzleTask):
    """Four digits in ascending order, with the required methods only."""

    name = "sort"
    vocab_size, seq_len = 7, 4

    def parse(self, text):
        return np.array([int(digit) for digit in text], np.uint8)

    def format(self, tokens):
        return "".join(map(str, tokens))

    def check(self, inputs, answer):
        return None if (np.sort(inputs) == answer).all() else "the digits are not in order"


@pytest.fixture
def tasks(monkeypatch):
    """The registered tasks, restored afterwards."""
    for name in TASKS:
        monkeypatch.setitem(TASKS, name, TASKS[name])
    yield TASKS
    for name in set(TASKS) - {"sudoku", "maze", "arc"}:
        del TASKS[name]


def test_a_registered_task_is_found_by_shape_and_by_name(tasks):
    with pytest.raises(InputError, match=r"task 'sort' is not known; expected one of .*\(register_task adds"):
        task_of(7, 4, "sort")
    assert register_task(Sort) is Sort
    assert isinstance(task_of(7, 4), Sort) and isinstance(task_of(7, 4, "sort"), Sort)
    with pytest.raises(InputError, match="no sort task has vocabulary 7 with 5 tokens$"):
        task_of(7, 5, "sort")


def test_built_in_tasks_come_before_registered_ones_of_the_same_shape(tasks):
    register_task(type("Other", (Sort,), {"name": "other", "vocab_size": 11, "seq_len": 81}))
    assert task_of(11, 81) == Sudoku(9) and type(task_of(11, 81, "other")).__name__ == "Other"


def test_a_class_defined_again_replaces_the_one_before(tasks):
    register_task(Sort)
    again = type("Sort", (Sort,), {"__module__": Sort.__module__})
    register_task(again)
    assert tasks["sort"] is again


def test_classes_that_are_not_tasks_are_refused(tasks):
    with pytest.raises(InputError, match="got 3, expected a subclass of PuzzleTask"):
        register_task(3)
    with pytest.raises(InputError, match="got <class 'int'>, expected a subclass of PuzzleTask"):
        register_task(int)
    with pytest.raises(InputError, match="Half does not define check, format, parse, name"):
        register_task(type("Half", (PuzzleTask,), {"vocab_size": 3, "seq_len": 2}))
    with pytest.raises(InputError, match="the name 'sudoku' belongs to Sudoku already; choose another"):
        register_task(type("Mine", (Sort,), {"name": "sudoku"}))
    assert set(tasks) == {"sudoku", "maze", "arc"}


def test_a_task_is_drawn_as_one_row_of_numbers_by_default():
    tokens = np.array([3, 1, 2, 6], np.uint8)
    assert Sort().render(tokens) == "3126" and Sort().cells(tokens, tokens) == [
        [Cell(str(one)) for one in (3, 1, 2, 6)]
    ]


def test_reprs_are_readable():
    assert repr(Sudoku(4)) == "Sudoku(size=4)" and repr(Maze(9)) == "Maze(size=9)"
    assert repr(Sort()) == "Sort(vocab_size=7, seq_len=4)" and repr(Arc()) == "Arc(vocab_size=12, seq_len=900)"
    tokens, numbers = np.ones((2, 16), np.uint8), np.array([3, 7])
    assert repr(Puzzles(tokens, tokens, numbers, numbers)) == "Puzzles(2 of 16 cells, ratings 3 to 7)"
    assert repr(Puzzles.concatenate([], 16)) == "Puzzles(0 of 16 cells)"
    assert repr(solve(tokens)) == "Solutions(2 puzzles: 0 with one solution, 2 with more)"
    pair = (tokens, None)
    assert repr(ArcTask("a1", "training", (pair, pair), (pair,))) == (
        "ArcTask('a1', subset 'training', 2 demonstrations, 1 test)"
    )

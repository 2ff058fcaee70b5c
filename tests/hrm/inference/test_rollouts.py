import numpy as np
import pytest
from tiny_sudoku import tiny

from hrm import Engine, InputError
from hrm.data import maze, sudoku
from hrm.inference.engine import Puzzle
from hrm.inference.rollouts import ranked, roll_out, symmetry


@pytest.mark.parametrize("task", [sudoku.Sudoku(4), sudoku.Sudoku(6), sudoku.Sudoku(9), maze.Maze(9)])
def test_a_symmetry_keeps_solutions_and_is_undone(task):
    rng = np.random.default_rng(0)
    generate = sudoku.generate if task.name == "sudoku" else maze.generate
    puzzles = generate(1, task.size, rng)
    inputs, labels = puzzles.inputs[0], puzzles.labels[0]
    seen = set()
    for number in range(8):
        variant = symmetry(task, number, rng)
        assert task.check(variant.apply(inputs), variant.apply(labels)) is None
        np.testing.assert_array_equal(variant.undo(variant.apply(labels)), labels)
        seen.add(variant.apply(labels).tobytes())
    assert len(seen) >= 7
    np.testing.assert_array_equal(symmetry(task, 0, rng).apply(inputs), inputs)


def test_the_vote():
    puzzle = sudoku.generate(1, 4, np.random.default_rng(0))
    inputs, right = puzzle.inputs[0], puzzle.labels[0]
    often, sure, unsure = (np.full(16, token, np.uint8) for token in (2, 3, 4))
    answers = [(often, -9.0), (often, -9.0), (unsure, 0.0), (sure, 5.0), (right, -9.0)]
    order = [one.tokens.tolist() for one in ranked(sudoku.Sudoku(4), inputs, answers)]
    assert order == [one.tolist() for one in (right, often, sure, unsure)]
    assert [one.votes for one in ranked(None, inputs, answers)] == [2, 1, 1, 1]
    assert not ranked(None, inputs, answers)[0].solves


def test_rollouts_that_would_be_the_same_are_refused():
    with Engine(tiny(), slots=2) as engine, pytest.raises(InputError, match="2 rollouts would all be the same"):
        next(roll_out(engine, sudoku.Sudoku(4), [Puzzle(np.ones(16, int))], 2, augment=False))


def test_a_maze_has_eight_variants():
    puzzle = maze.generate(1, 5, np.random.default_rng(0)).inputs[0]
    with Engine(tiny(25), slots=2) as engine:
        with pytest.raises(
            InputError, match="^9 rollouts of a maze .* its 8 turns .*; give noise=0.5, or at most 8 roll"
        ):
            next(roll_out(engine, maze.Maze(5), [Puzzle(puzzle)], 9))
        for number, noise in ((8, 0.0), (9, 0.5)):
            rollouts = list(roll_out(engine, maze.Maze(5), [Puzzle(puzzle)], number, noise=noise))
            assert len({one.symmetry.cells.tobytes() for one in rollouts}) == 8
            assert [one.number for one in rollouts] == list(range(number))

import numpy as np
import pytest

from hrm.data import arc, maze, sudoku
from hrm.inference.symmetries import has_symmetries, symmetry


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
    assert len(seen) >= 7 and has_symmetries(task)
    np.testing.assert_array_equal(symmetry(task, 0, rng).apply(inputs), inputs)


def test_tasks_without_symmetries():
    task, rng = arc.Arc(), np.random.default_rng(0)
    assert not has_symmetries(task) and not has_symmetries(None)
    np.testing.assert_array_equal(symmetry(task, 3, rng).apply(np.arange(900) % 12), np.arange(900) % 12)

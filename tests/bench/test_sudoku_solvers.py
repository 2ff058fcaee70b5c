"""The comparison with a classical solver: its library is called correctly, and the table tells speed and accuracy."""

import shutil

import numpy as np
import pytest
import torch

import hrm
from bench import sudoku_solvers
from hrm.data import sudoku
from hrm.data.format import SetBuilder, open_dataset, write_dataset

STAND_IN = """
#include <cstddef>
#include <cstdint>
#include <cstring>
// Answers every cell with 5, but keeps the clues.
extern "C" std::size_t TdokuSolverDpllTriadSimd(
    const char* input, std::size_t, std::uint32_t, char* solution, std::size_t*) {
    for (int cell = 0; cell < 81; ++cell) solution[cell] = input[cell] == '.' ? '5' : input[cell];
    return std::strlen(input) == 81;
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_a_solver_is_compiled_and_called(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "solver_dpll_triad_simd.cc").write_text(STAND_IN)
    (tmp_path / "src" / "util.cc").write_text("")
    inputs = np.random.default_rng(0).integers(1, 11, (3, 81)).astype(np.uint8)
    answers = sudoku_solvers.by_tdoku(sudoku_solvers.compiled(tmp_path, tmp_path), inputs)()
    np.testing.assert_array_equal(answers, np.where(inputs == 1, 6, inputs))


def test_the_table_tells_speed_and_accuracy(tmp_path):
    puzzles, builder = sudoku.generate(2, 9, np.random.default_rng(0), sudoku.Difficulty(clues=(45, 50))), SetBuilder()
    builder.add_puzzles(puzzles.inputs, puzzles.labels)
    write_dataset(tmp_path / "d", {"test": {"all": builder}}, vocab_size=11, seq_len=81, identifiers=["<blank>"])
    model, threads = hrm.load("sudoku9", device="cpu").eval(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        rows = sudoku_solvers.rows_of("easy", open_dataset(tmp_path / "d", "test"), model, None, 2, 1)
    finally:
        torch.set_num_threads(threads)
    assert [row.split(" | ")[1] for row in rows] == list(sudoku_solvers.solvers(model, puzzles.inputs, None))
    assert all(row.endswith(" | 100.0 % |") and float(row.split(" | ")[2]) > 0 for row in rows)

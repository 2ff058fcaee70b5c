"""Puzzles in texts: one per line, boards over several lines, titles, blank lines, damage."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.data.arc import Arc
from hrm.data.maze import Maze
from hrm.data.maze import generate as mazes
from hrm.data.puzzle_csv import has_header
from hrm.data.puzzle_text import split_text
from hrm.data.sudoku import Sudoku
from hrm.data.sudoku import generate as sudokus
from hrm.errors import InputError

NINE, FOUR = Sudoku(9), Sudoku(4)
BOARDS = [NINE.format(board) for board in sudokus(3, 9, np.random.default_rng(0)).inputs]
SMALL = [FOUR.format(board) for board in sudokus(3, 4, np.random.default_rng(0)).inputs]


def rows(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)]


def block(text):
    return "\n".join(rows(text, 9))


def read(task, text):
    """Pairs of place and board in one line; the board is None if it cannot be read."""
    puzzles = []
    for place, puzzle in split_text(task, "p", text):
        try:
            puzzles.append((place, task.format(task.parse(puzzle))))
        except InputError:
            puzzles.append((place, None))
    return puzzles


def at(*lines):
    return [(f"p:{line}", board) for line, board in zip(lines, BOARDS)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\n".join(BOARDS), (1, 2, 3)),
        ("\n\n".join(BOARDS) + "\n\n", (1, 3, 5)),
        ("\n\n".join(map(block, BOARDS)), (1, 11, 21)),
        ("\n".join(map(block, BOARDS)), (1, 10, 19)),
        ("\n".join(NINE.render(NINE.parse(board)) for board in BOARDS), (1, 12, 23)),
        ("".join(f"Grid 0{n}\n{block(board)}\n" for n, board in enumerate(BOARDS)), (2, 12, 22)),
        ("\n\n\n".join(f"# number {n}\n\n{block(board)}" for n, board in enumerate(BOARDS)), None),
        ("\n".join(f"one,\n{block(board)}\n" for board in BOARDS), (2, 13, 24)),
    ],
)
def test_several_sudokus_in_all_layouts(text, lines):
    puzzles = read(NINE, text)
    if lines is None:  # a title with a blank line below counts as a malformed puzzle
        assert [board for _, board in puzzles] == [None, BOARDS[0], None, BOARDS[1], None, BOARDS[2]]
    else:
        assert puzzles == at(*lines)


def test_one_board_may_be_written_in_any_way():
    for text in (BOARDS[0], block(BOARDS[0]), "\n\n".join(rows(BOARDS[0], 27)), "\n".join(rows(BOARDS[0], 27))):
        assert read(NINE, text) == [("p", BOARDS[0])]
    assert read(NINE, "Monday\n" + block(BOARDS[0])) == [("p:2", BOARDS[0])]


def test_csv_headers_are_recognised():
    for header in ("question,answer", "id\tPuzzle\tsolution", "quizzes;x"):
        assert has_header(f"{header}\r\n1,2\n")
    for first in ("Puzzle", "puzzle 1, easy", BOARDS[0], "[[0,1],[2,3]]", ""):
        assert not has_header(f"{first}\n{block(BOARDS[0])}")


def test_a_malformed_puzzle_does_not_affect_the_others():
    a, b, c = BOARDS
    assert read(NINE, f"{a}\n{b[:-1]}\n{c}") == [("p:1", a), ("p:2", None), ("p:3", c)]
    assert read(NINE, f"12a4\n{a}") == [("p:1", None), ("p:2", a)]
    assert read(NINE, f"{a[:-1]}A\n{b}\n{c}") == [("p:1", None), ("p:2", b), ("p:3", c)]
    assert read(NINE, f"{b[:40]}\n{b[40:]}\n{c}") == [("p:1", None), ("p:2", None), ("p:3", c)]
    assert read(NINE, "\n\n".join((block(a), block(b)[:-1], block(c)))) == [
        ("p:1", a), ("p:11", None), ("p:21", c),
    ]  # fmt: skip


def test_texts_without_a_puzzle_are_refused():
    with pytest.raises(InputError, match="^p is empty; expected puzzles, one per line$"):
        split_text(NINE, "p", "\n \n")
    with pytest.raises(InputError, match=r"^p has no puzzle: neither the whole is one .* nor a part of it .Sud"):
        split_text(NINE, "p", "12\n34\n")


def test_several_mazes_in_all_layouts():
    task = Maze(9)
    texts = [task.format(maze) for maze in mazes(3, 9, np.random.default_rng(0)).inputs]
    expected = [(f"p:{line}", text) for line, text in zip((1, 11, 21), texts)]
    assert read(task, "\n\n".join("\n".join(rows(text.replace(" ", "."), 9)) for text in texts)) == expected
    assert [text for _, text in read(task, "\n".join(text.replace(" ", ".") for text in texts))] == texts
    close = "\n".join("\n".join(rows(text.replace(" ", "."), 9)) for text in texts)
    assert [text for _, text in read(task, close)] == texts


def test_several_arc_grids_in_all_layouts():
    grids = [[[0, 1], [2, 3]], [[4, 5]], [[6], [7]]]
    digits = ["\n".join("".join(map(str, row)) for row in grid) for grid in grids]
    for text, lines in (
        ("\n\n".join(digits), (1, 4, 6)),
        ("\n".join(f"Grid {n}\n{text}" for n, text in enumerate(digits[:1])), (2,)),
        ("\n".join(map(json.dumps, grids)), (1, 2, 3)),
    ):
        puzzles = [(place, json.loads(grid)) for place, grid in read(Arc(), text)]
        assert puzzles == [(f"p:{line}", grid) for line, grid in zip(lines, grids)]
    assert read(Arc(), "01\n2\n\n34") == [("p:1", None), ("p:4", "[[3,4]]")]


def test_a_long_file_of_garbage_is_refused_quickly():
    with pytest.raises(InputError, match="has no puzzle"):
        split_text(NINE, "p", "1\n" * 20_000)
    with pytest.raises(InputError, match="has no puzzle"):
        split_text(FOUR, "p", SMALL[0][:-1] + "\n" + "a" * 1_000_000)


PIECES = [
    "\n",
    "\n\n",
    "\r\n",
    " ",
    "1",
    "..",
    "x",
    "#####",
    "S",
    "G",
    "Grid 1",
    "[",
    "]",
    "[[1,2]]",
    "é",
    "\0",
    "\u2028",
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([FOUR, Maze(5), Arc()]), st.lists(st.sampled_from([*PIECES, *SMALL]), max_size=30))
def test_any_text_is_split_or_refused_in_one_line(task, pieces):
    text = "".join(pieces)
    try:
        puzzles = split_text(task, "p", text)
    except InputError as error:
        assert str(error).startswith("p ") and "\n" not in str(error)
    else:
        lines = text.splitlines()
        for place, puzzle in puzzles:  # each puzzle is an unchanged part of the text
            start = 0 if place == "p" else int(place.removeprefix("p:")) - 1
            assert puzzle == text or "\n".join(lines[start:]).startswith(puzzle)

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.data import TASKS, task_of
from hrm.data.puzzle_csv import BadRows, read_puzzles
from hrm.data.puzzles import row_keys
from hrm.data.sudoku import BOXES, Difficulty, Sudoku, augment, build_set, generate, solve
from hrm.errors import InputError

HARD = Path(__file__).parents[2] / "data" / "sudoku_hard.csv"
QUESTION = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def used_around(board: list[list[int]], row: int, column: int, size: int) -> set[int]:
    """The digits in the other cells of a cell's row, column and box."""
    height, width = BOXES[size]
    top, left = row // height * height, column // width * width
    peers = {(row, at) for at in range(size)} | {(at, column) for at in range(size)}
    peers |= {(r, c) for r in range(top, top + height) for c in range(left, left + width)}
    return {board[r][c] for r, c in peers - {(row, column)}}


def brute_force(board: list[list[int]], size: int, limit: int = 2) -> int:
    """Number of solutions of a board (0 is blank), cell by cell; shares no code with the package."""
    for row in range(size):
        for column in range(size):
            if board[row][column] and board[row][column] in used_around(board, row, column, size):
                return 0
    for row in range(size):
        for column in range(size):
            if board[row][column]:
                continue
            total = 0
            for digit in range(1, size + 1):
                if digit not in used_around(board, row, column, size):
                    board[row][column] = digit
                    total += brute_force(board, size, limit - total)
                    board[row][column] = 0
                    if total >= limit:
                        return total
            return total
    return 1


def board_of(tokens: np.ndarray, size: int) -> list[list[int]]:
    return np.maximum(tokens.astype(int) - 1, 0).reshape(size, size).tolist()


def is_solved(tokens: np.ndarray, size: int) -> bool:
    board, digits = np.array(board_of(tokens, size)), set(range(1, size + 1))
    height, width = BOXES[size]
    boxes = [
        board[r : r + height, c : c + width].ravel() for r in range(0, size, height) for c in range(0, size, width)
    ]
    return all(set(unit.tolist()) == digits for unit in (*board, *board.T, *boxes))


def test_parse_reads_what_format_and_render_write():
    task = Sudoku(9)
    tokens = task.parse(QUESTION)
    assert tokens.dtype == np.uint8
    assert tokens[:5].tolist() == [6, 4, 1, 1, 8]
    assert task.format(tokens) == QUESTION
    assert (task.parse(task.render(tokens)) == tokens).all()
    assert (task.parse(QUESTION.replace(".", "0")) == tokens).all()
    rows = [QUESTION[start : start + 9] for start in range(0, 81, 9)]
    grid = "\n".join("|".join((row[:3], row[3:6], row[6:])) for row in rows)
    assert (task.parse("+---+---+\n" + grid + "\n") == tokens).all()


def test_render_draws_the_boxes():
    assert Sudoku(6).render(Sudoku(6).parse("1.3456" + "." * 30)).splitlines()[:4] == [
        "1 . 3 │ 4 5 6",
        ". . . │ . . .",
        "──────┼──────",
        ". . . │ . . .",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (QUESTION[:-1], "80 cells, expected 81"),
        (QUESTION[:10] + "a" + QUESTION[11:], "'a' at row 2 column 2, expected a digit 1 to 9"),
        ("55" + QUESTION[2:], "row 1 has 5 twice"),
        ("5........" * 2 + "." * 63, "column 1 has 5 twice"),
        ("5........" + ".5......." + "." * 63, "box 1 has 5 twice"),
    ],
)
def test_parse_names_what_is_wrong(text, message):
    with pytest.raises(InputError, match=message):
        Sudoku(9).parse(text)


def test_parse_rejects_digits_beyond_the_size():
    with pytest.raises(InputError, match="'5' at row 1 column 4, expected a digit 1 to 4"):
        Sudoku(4).parse("...5" + "." * 12)


def test_check_returns_the_reason():
    task = Sudoku(9)
    inputs, answer = task.parse(QUESTION), task.parse(ANSWER)
    assert task.check(inputs, answer) is None
    assert task.check(inputs, inputs) == "row 1 column 3 is not a digit 1 to 9"
    swapped = answer.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert task.check(inputs, swapped) == "row 1 column 1 is 3 but the puzzle says 5"
    wrong = answer.copy()
    wrong[2] = 10
    assert task.check(inputs, wrong) == "row 1 has 9 twice"
    assert task.check(inputs, np.zeros(81, np.uint8)) == "row 1 column 1 is not a digit 1 to 9"


def test_solves_agrees_with_check_on_random_damage():
    task, rng = Sudoku(9), np.random.default_rng(0)
    inputs = np.tile(task.parse(QUESTION), (300, 1))
    answers = np.tile(task.parse(ANSWER), (300, 1))
    damaged = rng.random((300, 81)) < 0.01
    answers[damaged] = rng.integers(0, 11, damaged.sum())
    expected = [task.check(*pair) is None for pair in zip(inputs, answers, strict=True)]
    assert task.solves(inputs, answers).tolist() == expected
    assert 50 < sum(expected) < 290


def test_cells_colour_clues_answers_and_conflicts():
    task = Sudoku(4)
    inputs = task.parse("12.. .... .... ....")
    cells = task.cells(np.array([2, 3, 3, 1] + [0] * 12), inputs)
    assert (cells[0][0].text, cells[0][0].foreground, cells[0][0].background) == ("1", "#000000", "#ffffff")
    assert (cells[0][2].text, cells[0][2].foreground) == ("2", "#1f5fd0")
    assert cells[0][1].background == cells[0][2].background == "#f8c9c9"
    assert cells[0][3].text == cells[1][0].text == ""
    assert task.cells(np.array([3] + [0] * 15), inputs)[0][0].background == "#f8c9c9"


def test_solver_finds_the_published_answers_and_ratings():
    puzzles = read_puzzles(HARD, Sudoku(9), BadRows())
    assert len(puzzles) == 200
    solutions = solve(puzzles.inputs)
    assert (solutions.answers == puzzles.labels).all()
    assert (solutions.counts == 1).all()
    assert solutions.ratings.tolist() == puzzles.ratings.tolist()


def test_solver_counts_zero_and_several_solutions():
    task = Sudoku(9)
    several = task.parse(ANSWER.replace("1", ".").replace("2", "."))
    none = task.parse("." * 8 + "1" + "." * 72)
    none[:8] = np.arange(3, 11)  # 2 to 9 in the row, then no digit is left for its last cell
    none[8], none[17] = 1, 2
    empty = np.ones(81, np.uint8)
    solutions = solve(np.stack([several, none, empty, task.parse(ANSWER)]))
    assert solutions.counts.tolist() == [2, 0, 2, 1]
    assert (solutions.answers[1] == 0).all()
    assert is_solved(solutions.answers[2], 9)


@pytest.mark.parametrize("size", [4, 6])
def test_solver_counts_match_brute_force(size):
    rng = np.random.default_rng(size)
    inputs = generate(24, size, rng).inputs
    for board in inputs[:8]:  # one clue less: several solutions
        board[rng.choice(np.flatnonzero(board > 1))] = 1
    for board in inputs[16:]:  # one clue changed: often no solution
        at = rng.choice(np.flatnonzero(board > 1))
        board[at] = 2 + (board[at] - 1) % size
    solutions = solve(inputs)
    assert solutions.counts.tolist() == [brute_force(board_of(board, size), size) for board in inputs]


@pytest.mark.parametrize(("size", "count"), [(4, 600), (6, 60), (9, 20)])
def test_generated_puzzles_are_distinct_minimal_and_have_one_solution(size, count):
    puzzles = generate(count, size, np.random.default_rng(1))
    assert len(puzzles) == count == len({board.tobytes() for board in puzzles.inputs})
    assert all(is_solved(answer, size) for answer in puzzles.labels)
    is_clue = puzzles.inputs > 1
    assert (puzzles.inputs[is_clue] == puzzles.labels[is_clue]).all()
    assert (solve(puzzles.inputs).counts == 1).all()
    for board in puzzles.inputs[:10]:
        clues = np.flatnonzero(board > 1)
        without = np.tile(board, (len(clues), 1))
        without[np.arange(len(clues)), clues] = 1
        assert (solve(without).counts == 2).all()
    assert all(brute_force(board_of(board, size), size) == 1 for board in puzzles.inputs[: {4: 20, 6: 3, 9: 0}[size]])


def test_generation_is_repeatable_and_has_the_requested_rating():
    first, again = (generate(8, 9, np.random.default_rng(5), Difficulty(min_rating=3)) for _ in range(2))
    assert (first.inputs == again.inputs).all()
    assert first.ratings.min() >= 3
    assert (solve(first.inputs).ratings == first.ratings).all()
    assert not (generate(8, 9, np.random.default_rng(6)).inputs == first.inputs).all()


def test_newspaper_puzzles_need_no_guess_and_have_the_clues_asked_for():
    puzzles = generate(40, 6, np.random.default_rng(1), Difficulty(max_rating=0, clues=(11, 13)))
    assert set((puzzles.inputs > 1).sum(1)) == {11, 12, 13}
    assert (puzzles.ratings == 0).all()
    assert (solve(puzzles.inputs).counts == 1).all()


def test_a_range_of_clues_that_cannot_be_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="clues 9 to 3: expected a range in 0 to 16, the lower one first"):
        generate(5, 4, rng, Difficulty(clues=(9, 3)))
    with pytest.raises(InputError, match="clues 5 to 6 and 2 extra clues exclude each other; give one"):
        generate(5, 4, rng, Difficulty(extra_clues=2, clues=(5, 6)))


def test_generation_stops_when_it_finds_no_new_puzzles(monkeypatch):
    monkeypatch.setattr("hrm.data.sudoku.generator._BARREN", 200)
    with pytest.raises(
        InputError,
        match="only 0 of 5 distinct 4 x 4 Sudokus of rating 1000 or more were found; ask for",
    ):
        generate(5, 4, np.random.default_rng(0), Difficulty(min_rating=1000))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([4, 6, 9]), st.integers(0, 2**32))
def test_augmentation_keeps_puzzles_valid(size, seed):
    puzzles = {4: FOUR, 6: SIX, 9: NINE}[size]
    inputs, labels = augment(puzzles.inputs, puzzles.labels, np.random.default_rng(seed))
    task = Sudoku(size)
    assert inputs.dtype == labels.dtype == np.uint8
    assert all(is_solved(answer, size) for answer in labels)
    assert task.solves(inputs, labels).all()
    assert ((inputs > 1).sum(1) == (puzzles.inputs > 1).sum(1)).all()


FOUR, SIX, NINE = (generate(5, size, np.random.default_rng(0)) for size in (4, 6, 9))


def test_augmentation_keeps_the_solution_unique_and_changes_every_cell():
    inputs, labels = (np.repeat(tokens[:1], 300, 0) for tokens in (NINE.inputs, NINE.labels))
    changed, answers = augment(inputs, labels, np.random.default_rng(0))
    assert (solve(changed[:40]).counts == 1).all()
    assert len(np.unique(row_keys(changed))) == 300
    for cell in (0, 40, 80):
        assert set(answers[:, cell].tolist()) == set(range(2, 11))


def test_build_set_groups_originals_with_their_augmentations_and_avoids_the_test_set():
    train = FOUR.take(np.arange(3))
    # A puzzle has at most 24 * 128 equivalents: 2000 random ones include some of these 30.
    test, _ = augment(np.repeat(train.inputs, 10, 0), np.repeat(train.labels, 10, 0), np.random.default_rng(1))
    forbidden = set(row_keys(test).tolist()) - set(row_keys(train.inputs).tolist())
    free = build_set(train, 2000, np.random.default_rng(0)).arrays(16)
    arrays = build_set(train, 2000, np.random.default_rng(0), test).arrays(16)
    assert forbidden & set(row_keys(free["inputs"]).tolist())
    assert not forbidden & set(row_keys(arrays["inputs"]).tolist())
    assert arrays["group_indices"].tolist() == [0, 2001, 4002, 6003]
    assert arrays["puzzle_indices"].tolist() == list(range(6004))
    assert (arrays["puzzle_identifiers"] == 0).all()
    assert (arrays["inputs"][::2001] == train.inputs).all()
    assert Sudoku(4).solves(arrays["inputs"], arrays["labels"]).all()


def test_more_augmentations_than_fit_into_memory_are_refused_at_once():
    with pytest.raises(InputError, match=r"5 puzzles with 100000000000 equivalent ones each would take 14901 GB, .*;"):
        build_set(FOUR, 10**11, np.random.default_rng(0))


def test_task_of_picks_by_shape_or_name():
    assert [task_of(*shape) for shape in ((11, 81), (6, 16), (8, 36))] == [Sudoku(9), Sudoku(4), Sudoku(6)]
    assert task_of(11, 81, "sudoku") == Sudoku(9)
    assert set(TASKS) == {"sudoku", "maze", "arc"}
    with pytest.raises(InputError, match="no known task has vocabulary 7 with 81 tokens; expected n . 2 with n"):
        task_of(7, 81)
    with pytest.raises(InputError, match="no maze task has vocabulary 11 with 81 tokens; expected 6 with n . n"):
        task_of(11, 81, "maze")
    with pytest.raises(InputError, match="task 'chess' is not known; expected one of sudoku"):
        task_of(11, 81, "chess")
    with pytest.raises(InputError, match="size 5 is not known; choose 4, 6, 8, 9, 10, 12 or 16"):
        Sudoku(5)


@pytest.mark.parametrize("size", [8, 10, 12, 16])
def test_larger_boards(size):
    task, digits = Sudoku(size), "123456789ABCDEFG"[:size]
    height, width = BOXES[size]
    rows = [[(row % height * width + row // height + column) % size for column in range(size)] for row in range(size)]
    answer = "".join(digits[digit] for row in rows for digit in row)
    tokens = task.parse(answer.lower())
    assert task.format(tokens) == answer and task.vocab_size == size + 2
    assert is_solved(tokens, size) and task.check(tokens, tokens) is None
    puzzle = tokens.copy()
    puzzle[:: size + 1] = 1  # a diagonal
    solutions = solve(puzzle[None])
    assert solutions.counts == 1 and (solutions.answers == tokens).all()
    assert (task.parse(task.render(puzzle)) == puzzle).all()
    twice = puzzle.copy()
    twice[0] = tokens[1]
    assert task.impossible(twice) == f"row 1 has {tokens[1] - 1} twice"
    assert task_of(size + 2, size * size) == task
    inputs, labels = augment(puzzle[None], tokens[None], np.random.default_rng(0))
    assert task.solves(inputs, labels).all() and is_solved(labels[0], size)
    if size > 9:
        assert "A" not in Sudoku(9).symbols and task.symbols["a"] == 11


def test_extra_clues_are_added_up_to_their_number():
    bare, extended = (generate(200, 4, np.random.default_rng(0), Difficulty(extra_clues=extra)) for extra in (0, 5))
    clues = [(puzzles.inputs > 1).sum(1) for puzzles in (bare, extended)]
    assert clues[0].max() <= 6 and clues[1].max() > 8  # a minimal 4 x 4 Sudoku has 4 to 6 clues
    assert abs(clues[1].mean() - clues[0].mean() - 2.5) < 0.5
    assert (solve(extended.inputs).counts == 1).all()
    assert (np.where(extended.inputs > 1, extended.inputs, extended.labels) == extended.labels).all()


def test_what_propagation_refutes_has_no_solution():
    rng = np.random.default_rng(0)
    kinds = set()
    for size in (4, 6):
        task, shape = Sudoku(size), (400, size * size)
        boards = np.where(rng.random(shape) < 0.2, rng.integers(2, size + 2, shape), 1).astype(np.uint8)
        reasons = [task.impossible(board) for board in boards]
        counts = solve(boards).counts
        assert not counts[[reason is not None for reason in reasons]].any()
        kinds |= {re.sub(r"\d", "N", reason or "possible") for reason in reasons}
    assert {"row N has N twice", "box N has N twice", "no digit fits at row N column N", "possible"} < kinds
    assert any("has no place for" in kind for kind in kinds)

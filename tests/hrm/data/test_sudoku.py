import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.data import TASKS, task_of
from hrm.data.puzzle_csv import BadRows, find_split, read_puzzles, task_of_file
from hrm.data.puzzles import row_keys
from hrm.data.sudoku import BOXES, Sudoku, augment, build_set, generate, solve
from hrm.errors import InputError

HARD = Path(__file__).parents[2] / "data" / "sudoku_hard.csv"
SHARED = Path(__file__).parents[4] / "shared" / "data" / "sudoku"
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
    """Solutions of a board (0 blank), tried cell by cell: no code shared with the package."""
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


def test_check_gives_the_reason():
    task = Sudoku(9)
    inputs, answer = task.parse(QUESTION), task.parse(ANSWER)
    assert task.check(inputs, answer) is None
    assert task.check(inputs, inputs) == "row 1 column 3 is not a digit 1 to 9"
    swapped = answer.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert task.check(inputs, swapped) == "row 1 column 1 is 3 where the puzzle gives 5"
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
    found = solve(puzzles.inputs)
    assert (found.answers == puzzles.labels).all()
    assert (found.counts == 1).all()
    assert found.ratings.tolist() == puzzles.ratings.tolist()


def test_solver_counts_no_and_several_solutions():
    task = Sudoku(9)
    several = task.parse(ANSWER.replace("1", ".").replace("2", "."))
    none = task.parse("." * 8 + "1" + "." * 72)
    none[:8] = np.arange(3, 11)  # 2..9 in the row, and the 1 of its last cell moved away below
    none[8], none[17] = 1, 2
    empty = np.ones(81, np.uint8)
    found = solve(np.stack([several, none, empty, task.parse(ANSWER)]))
    assert found.counts.tolist() == [2, 0, 2, 1]
    assert (found.answers[1] == 0).all()
    assert is_solved(found.answers[2], 9)


@pytest.mark.parametrize("size", [4, 6])
def test_solver_counts_as_brute_force_does(size):
    rng = np.random.default_rng(size)
    inputs = generate(24, size, rng).inputs
    for board in inputs[:8]:  # one clue less: several solutions
        board[rng.choice(np.flatnonzero(board > 1))] = 1
    for board in inputs[16:]:  # one clue changed: often none
        at = rng.choice(np.flatnonzero(board > 1))
        board[at] = 2 + (board[at] - 1) % size
    found = solve(inputs)
    assert found.counts.tolist() == [brute_force(board_of(board, size), size) for board in inputs]


@pytest.mark.parametrize(("size", "count"), [(4, 600), (6, 60), (9, 20)])
def test_generated_puzzles_are_distinct_minimal_and_have_one_solution(size, count):
    puzzles = generate(count, size, np.random.default_rng(1))
    assert len(puzzles) == count == len({board.tobytes() for board in puzzles.inputs})
    assert all(is_solved(answer, size) for answer in puzzles.labels)
    given_clues = puzzles.inputs > 1
    assert (puzzles.inputs[given_clues] == puzzles.labels[given_clues]).all()
    assert (solve(puzzles.inputs).counts == 1).all()
    for board in puzzles.inputs[:10]:
        clues = np.flatnonzero(board > 1)
        without = np.tile(board, (len(clues), 1))
        without[np.arange(len(clues)), clues] = 1
        assert (solve(without).counts == 2).all()
    assert all(brute_force(board_of(board, size), size) == 1 for board in puzzles.inputs[: {4: 20, 6: 3, 9: 0}[size]])


def test_generation_repeats_with_its_seed_and_keeps_the_rating():
    first, again = (generate(8, 9, np.random.default_rng(5), min_rating=3) for _ in range(2))
    assert (first.inputs == again.inputs).all()
    assert first.ratings.min() >= 3
    assert (solve(first.inputs).ratings == first.ratings).all()
    assert not (generate(8, 9, np.random.default_rng(6)).inputs == first.inputs).all()


def test_generator_says_when_there_are_no_more(monkeypatch):
    monkeypatch.setattr("hrm.data.sudoku.generator._BARREN", 200)
    with pytest.raises(InputError, match="only 0 of 5 distinct 4 x 4 Sudokus of rating 1000 or more"):
        generate(5, 4, np.random.default_rng(0), min_rating=1000)


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


def test_augmentation_keeps_the_solution_unique_and_reaches_everywhere():
    inputs, labels = (np.repeat(tokens[:1], 300, 0) for tokens in (NINE.inputs, NINE.labels))
    changed, answers = augment(inputs, labels, np.random.default_rng(0))
    assert (solve(changed[:40]).counts == 1).all()
    assert len(np.unique(row_keys(changed))) == 300
    for cell in (0, 40, 80):
        assert set(answers[:, cell].tolist()) == set(range(2, 11))


def test_build_set_groups_originals_with_their_augmentations_and_avoids_the_test_set():
    train = FOUR.take(np.arange(3))
    # A puzzle has at most 24 * 128 equivalents: among 2000 random ones some of these 30 come up.
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


def test_more_augmentations_than_memory_holds_are_refused_at_once():
    with pytest.raises(InputError, match=r"5 puzzles with 100000000000 equivalent ones each would take 14901 GB, .*;"):
        build_set(FOUR, 10**11, np.random.default_rng(0))


def test_task_of_picks_by_shape_or_name():
    assert [task_of(*shape) for shape in ((11, 81), (6, 16), (8, 36))] == [Sudoku(9), Sudoku(4), Sudoku(6)]
    assert task_of(11, 81, "sudoku") == Sudoku(9)
    assert set(TASKS) == {"sudoku", "maze", "arc"}
    with pytest.raises(InputError, match="no known task has vocabulary 7 with 81 tokens; expected 6 with 16, 8 with"):
        task_of(7, 81)
    with pytest.raises(InputError, match="no maze task has vocabulary 11 with 81 tokens; expected 6 with n . n"):
        task_of(11, 81, "maze")
    with pytest.raises(InputError, match="task 'chess' is not known; expected one of sudoku"):
        task_of(11, 81, "chess")
    with pytest.raises(InputError, match="size 5 is not known; choose 4, 6 or 9"):
        Sudoku(5)


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def damaged(tmp_path: Path, line: int, change: dict[int, str], name: str = "train.csv.gz") -> Path:
    """A copy of the hard puzzles with fields of one line changed."""
    rows = rows_of(HARD)
    for column, value in change.items():
        rows[line - 1][column] = value
    path = tmp_path / name
    with (gzip.open if name.endswith(".gz") else open)(path, "wt", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def of_line(line: int) -> tuple[str, str]:
    row = rows_of(HARD)[line - 1]
    return row[1], row[2]


def malformed() -> dict[str, tuple[dict[int, str], str]]:
    question, answer = of_line(17)
    clue = next(index for index, character in enumerate(question) if character != ".")
    other = answer[clue + 1] if answer[clue + 1] != answer[clue] else answer[clue + 2]
    contradicting = question[:clue] + other + question[clue + 1 :]
    swapped = answer[1] + answer[0] + answer[2:] if question[:2] == ".." else answer[:-2] + answer[-1] + answer[-2]
    return {
        "short": ({1: question[:-1]}, "question has 80 characters, expected 81"),
        "long answer": ({2: answer + "1"}, "answer has 82 characters, expected 81"),
        "character": ({1: question[:3] + "a" + question[4:]}, "question has 'a' at row 1 column 4"),
        "unicode": ({2: answer[:3] + "é" + answer[4:]}, "answer has 'é' at row 1 column 4"),
        "clue": ({1: contradicting}, "where the puzzle gives " + other),
        "answer": ({2: swapped}, "the answer does not solve the question: "),
        "blank": ({2: answer[:80] + "."}, "row 9 column 9 is not a digit 1 to 9"),
        "rating": ({3: "hard"}, "rating is 'hard', expected a number"),
        "no number": ({3: "nan"}, "rating is 'nan', expected a number"),
        "infinite": ({3: "1e999"}, "rating is '1e999', expected a number"),
    }


@pytest.mark.parametrize("kind", malformed())
def test_malformed_rows_are_named_by_file_and_line(tmp_path, kind):
    change, message = malformed()[kind]
    path = damaged(tmp_path, 17, change)
    with pytest.raises(InputError) as error:
        read_puzzles(path, Sudoku(9), BadRows())
    assert str(error.value).startswith(f"{path}:17: ")
    assert message in str(error.value)
    assert "--skip-bad" in str(error.value)
    bad = BadRows(skip=True)
    puzzles = read_puzzles(path, Sudoku(9), bad)
    assert (len(puzzles), bad.count, len(bad.reasons)) == (199, 1, 1)
    assert 17 not in puzzles.lines
    assert puzzles.lines[:16].tolist() == [*range(2, 17), 18]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"source,question,rating\n", "train.csv:1: no column 'answer' in source,question,rating"),
        (b"", "train.csv:1: no column 'question' in an empty file"),
        (b"question,answer\n", "train.csv has no puzzle below its header"),
        (b"question,answer\n123,456\n", "train.csv:2: question has 3 characters, expected 16, 36 or 81"),
        (b"question,answer\n\xff\xfe,1\n", "train.csv cannot be read as CSV"),
    ],
)
def test_unusable_files_are_named(tmp_path, content, message):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        task_of_file(path, Sudoku)
    assert message in str(error.value)


HEADERS = ["question,answer", "QUIZZES, Solutions", "id,Puzzle,solution,clues,DIFFICULTY", '"Question";"Answer";"x"']


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_have_other_names_in_use(tmp_path, header, encoding):
    delimiter = ";" if ";" in header else ","
    fields = [name.strip(' "').lower() for name in header.split(delimiter)]
    known = {"question": QUESTION, "answer": ANSWER, "difficulty": "3.7"}
    known |= {"quizzes": QUESTION, "solutions": ANSWER, "puzzle": QUESTION, "solution": ANSWER}
    row = delimiter.join(known.get(name, "7") for name in fields)
    path = tmp_path / "TRAIN.CSV"
    path.write_text(f"{header}\r\n{row}\r\n", encoding)
    assert find_split(tmp_path, "train") == path
    puzzles = read_puzzles(path, Sudoku(9), BadRows())
    assert Sudoku(9).format(puzzles.inputs[0]) == QUESTION and Sudoku(9).format(puzzles.labels[0]) == ANSWER
    assert puzzles.ratings.tolist() == [3 if "DIFFICULTY" in header else 0]


def test_ratings_may_be_missing_or_decimal_and_lines_blank(tmp_path):
    path = tmp_path / "train.csv"
    ratings = ["", "3.0", "2.9", " 4 ", "-1", "1e2"]
    rows = [f"{QUESTION},{ANSWER},{rating}\n" for rating in ratings]
    path.write_text("question,answer,rating\n\n" + "\n,,\n , , \n".join(rows) + "\n\n")
    puzzles = read_puzzles(path, Sudoku(9), BadRows())
    assert puzzles.ratings.tolist() == [0, 3, 2, 4, -1, 100]
    assert puzzles.lines.tolist() == list(range(3, 27, 4))


@pytest.mark.parametrize("blank", ".0*_?xX")
def test_a_blank_is_written_in_many_ways(tmp_path, blank):
    text = QUESTION.replace(".", blank)
    boards = [text, "\n".join(text[start : start + 9] for start in range(0, 81, 9)), " | ".join(text)]
    path = tmp_path / "train.csv"
    path.write_text("question,answer\n" + "".join(f'"{board}","{ANSWER}"\n' for board in boards))
    assert task_of_file(path, Sudoku) == Sudoku(9)
    puzzles = read_puzzles(path, Sudoku(9), BadRows())
    assert [Sudoku(9).format(inputs) for inputs in puzzles.inputs] == [QUESTION] * 3
    assert (np.stack([Sudoku(9).parse(board) for board in boards]) == puzzles.inputs).all()


def test_a_small_file_that_unpacks_to_an_endless_line_is_refused(tmp_path):
    path = tmp_path / "train.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"question,answer\n" + b"0" * (1 << 26))
    with pytest.raises(InputError, match=r"train.csv.gz cannot be read as gzipped CSV: a line has more than 1048576"):
        task_of_file(path, Sudoku)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"question,answer\n" + b'"' + b"0\n" * (1 << 20))
    with pytest.raises(InputError, match="cannot be read as gzipped CSV: field larger than field limit"):
        task_of_file(path, Sudoku)


def test_damaged_gzip_is_named(tmp_path):
    path = damaged(tmp_path, 2, {})
    for content in (path.read_bytes()[:3000], b"no gzip at all"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as gzipped CSV"):
            read_puzzles(path, Sudoku(9), BadRows())
    with pytest.raises(InputError, match="is missing; expected a CSV file"):
        read_puzzles(tmp_path / "no.csv", Sudoku(9), BadRows())


def test_a_row_with_too_few_fields_is_named(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(HARD.read_text() + "a,b\n")
    with pytest.raises(InputError, match=r"train.csv:202: 2 fields, expected 4"):
        read_puzzles(path, Sudoku(9), BadRows())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published puzzles are not beside this checkout")
@pytest.mark.parametrize(("split", "count"), [("train", 43752), ("test", 4000)])
def test_the_published_files_are_read_whole(split, count):
    path = SHARED / f"{split}.csv.gz"
    assert task_of_file(path, Sudoku) == Sudoku(9)
    puzzles = read_puzzles(path, Sudoku(9), BadRows())
    assert len(puzzles) == count
    with gzip.open(path, "rt") as file:
        last = list(csv.DictReader(file))[-1]
    assert Sudoku(9).format(puzzles.inputs[-1]) == last["question"]
    assert Sudoku(9).format(puzzles.labels[-1]) == last["answer"]
    assert puzzles.lines[-1] == count + 1
    some = puzzles.sample(100, np.random.default_rng(0))
    assert (solve(some.inputs).ratings == some.ratings).all()


def test_extra_clues_make_puzzles_with_up_to_so_many_more():
    bare, given = (generate(200, 4, np.random.default_rng(0), extra_clues=extra) for extra in (0, 5))
    clues = [(puzzles.inputs > 1).sum(1) for puzzles in (bare, given)]
    assert clues[0].max() <= 6 and clues[1].max() > 8  # a minimal 4 x 4 Sudoku has 4 to 6 clues
    assert abs(clues[1].mean() - clues[0].mean() - 2.5) < 0.5
    assert (solve(given.inputs).counts == 1).all()
    assert (np.where(given.inputs > 1, given.inputs, given.labels) == given.labels).all()

"""CSV files of puzzles: columns, encodings, malformed rows and files. Mazes in CSV files are in test_maze.py."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from hrm.data.puzzle_csv import BadRows, find_split, read_puzzles, task_of_file
from hrm.data.sudoku import Sudoku, solve
from hrm.errors import InputError

HARD = Path(__file__).parents[2] / "data" / "sudoku_hard.csv"
SHARED = Path(__file__).parents[4] / "shared" / "data" / "sudoku"
QUESTION = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


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
        "clue": ({1: contradicting}, "but the puzzle says " + other),
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
        (b"question,answer\n123,456\n", "train.csv:2: question has 3 characters, expected n * n, n one of 4, 6, 8,"),
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
def test_other_common_names_of_columns_are_accepted(tmp_path, header, encoding):
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


def test_ratings_may_be_missing_or_decimal_and_lines_may_be_blank(tmp_path):
    path = tmp_path / "train.csv"
    ratings = ["", "3.0", "2.9", " 4 ", "-1", "1e2"]
    rows = [f"{QUESTION},{ANSWER},{rating}\n" for rating in ratings]
    path.write_text("question,answer,rating\n\n" + "\n,,\n , , \n".join(rows) + "\n\n")
    puzzles = read_puzzles(path, Sudoku(9), BadRows())
    assert puzzles.ratings.tolist() == [0, 3, 2, 4, -1, 100]
    assert puzzles.lines.tolist() == list(range(3, 27, 4))


@pytest.mark.parametrize("blank", ".0*_?xX")
def test_a_blank_may_be_written_in_many_ways(tmp_path, blank):
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
    for content in (path.read_bytes()[:3000], b"not gzip"):
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
def test_the_published_files_are_read_completely(split, count):
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

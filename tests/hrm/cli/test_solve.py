import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hrm import HRM, HRMConfig, load, save
from hrm import api as hrm_api
from hrm.cli.answer_file import AnswerFile
from hrm.data.sudoku import Sudoku, generate
from hrm.files.locking import lock
from hrm.inference.solve import solve

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
TASK = Sudoku(4)


def run(*arguments, **options):
    command = [sys.executable, "-m", "hrm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of 4 x 4 Sudokus that halts at different segments."""
    folder = tmp_path_factory.mktemp("solve") / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1, "halt_max_steps": 6}
    model = HRM(HRMConfig(seq_len=16, vocab_size=6, forward_dtype="float32", **sizes))
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
        model.inner.q_head.bias.copy_(torch.tensor([0.0, 1.5]))
    save(model, folder, task="sudoku")
    return folder


@pytest.fixture(scope="module")
def puzzles():
    return generate(6, 4, np.random.default_rng(0)).inputs


def printed(solution):
    segments = "1 segment" if solution.steps == 1 else f"{solution.steps} segments"
    verdict = "valid" if solution.valid else f"not valid: {solution.reason}"
    return f"{TASK.render(solution.answer)}\n{verdict}; {segments}, confidence {solution.confidence:.2f}\n"


def test_one_puzzle(model, puzzles, tmp_path):
    (solution,) = solve(load(model), TASK, puzzles[:1])
    done = run("solve", model, TASK.format(puzzles[0]), "--gif", tmp_path / "way.gif", "--png", tmp_path / "end.png")
    assert (done.returncode, done.stderr) == (1, "")  # a random model's answer is not valid
    assert done.stdout == printed(solution)
    with Image.open(tmp_path / "way.gif") as gif, Image.open(tmp_path / "end.png") as png:
        assert gif.n_frames == solution.steps + 1
        assert png.size == gif.size == (72 * 4 + 72, 72 * 4 + 104)


def test_no_answer_rather_than_a_wrong_one(model, puzzles, call):
    puzzle = TASK.format(puzzles[0])
    code, out, err = call("solve", model, puzzle, "--abstain")
    assert (code, err) == (1, "") and out.startswith(f"{TASK.render(puzzles[0])}\nno answer: ")
    record = json.loads(call("solve", model, puzzle, "--abstain", "--json")[1])
    assert (record["answer"], record["valid"], record["verified"]) == (None, False, False) and record["reason"]
    code, out, _ = call("solve", model, "123....4........")
    assert code == 1 and out.endswith(
        "no answer: the puzzle has no solution: no digit fits at row 1 column 4; 0 segments, confidence 0.00\n"
    )


def test_several_trajectories(model, puzzles, call):
    arguments = ("solve", model, TASK.format(puzzles[0]), "--trajectories", 3, "--noise", 0.5, "--select", "q,vote")
    code, out, err = call(*arguments, "--seed", 7, "--json")
    record = json.loads(out)
    each = {one["number"]: one for one in record["trajectories"]}
    assert (code, err, sorted(each)) == (1, "", [0, 1, 2]) and len({one["residual"] for one in each.values()}) == 3
    chosen = each[record["chosen"]["q,vote"]]
    assert chosen["confidence"] == max(one["confidence"] for one in each.values()) == record["confidence"]
    assert (chosen["answer"], chosen["segments"]) == (record["answer"], record["segments"])
    (solution,) = solve(load(model), TASK, puzzles[:1])
    assert (each[0]["answer"], each[0]["segments"]) == (TASK.format(solution.answer), solution.steps)
    text = call(*arguments, "--seed", 7)[1]
    assert f"; q,vote takes {chosen['number']} (not valid)\n" in text and "\nof 3 trajectories: check takes 0 " in text
    code, out, err = call(*arguments, "--noise", 0)
    assert (code, out) == (2, "") and err.startswith("hrm: 3 trajectories would all be the same; give noise")


def test_trace(model, puzzles, call):
    (solution,) = solve(load(model), TASK, puzzles[:1], halt="fixed", max_steps=3)
    code, out, err = call("solve", model, TASK.format(puzzles[0]), "--trace", "--halt", "fixed", "--max-steps", 3)
    assert (code, err) == (1, "")
    assert out.startswith(f"the puzzle\n{TASK.render(puzzles[0])}\n\nsegment 1: ")
    for index, frame in enumerate(solution.frames):
        head = f"segment {index + 1}: halt {frame.confidence:.2f}, continue {frame.continue_value:.2f}"
        board = TASK.render(frame.tokens)
        assert f"\n{head}, cells changed: {solution.changed(index).sum()}\n{board}\n" in out
    assert out.endswith("; 3 segments, confidence " + f"{solution.confidence:.2f}\n")


def lines_of(puzzles):
    return "".join(TASK.format(puzzle) + "\n" for puzzle in puzzles)


def csv_of(puzzles):
    return "source,question\n" + "".join(f"x,{TASK.format(puzzle)}\n" for puzzle in puzzles)


@pytest.mark.parametrize(
    ("name", "write", "first"),
    [("p.txt", lines_of, 1), ("p.csv", csv_of, 2), ("p.csv.gz", csv_of, 2)],
)
def test_a_file_of_puzzles(model, puzzles, tmp_path, call, name, write, first):
    data = write(puzzles).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    solutions = solve(load(model), TASK, puzzles)
    assert len({solution.steps for solution in solutions}) > 1
    code, out, err = call("solve", model, tmp_path / name, "--batch-size", 4)
    boards = [f"{tmp_path / name}:{first + row}:\n{printed(solution)}" for row, solution in enumerate(solutions)]
    assert out == "".join(boards) + "0 of 6 answers valid\n"
    assert (code, err) == (1, "")


def test_a_csv_file_is_recognised_by_its_header(model, puzzles, call, tmp_path):
    """A header in capitals, in another encoding, or with another column name."""
    text = csv_of(puzzles[:2]).replace("source,question", "id,Quizzes")
    for name in ("P.CSV", "p.txt"):
        (tmp_path / name).write_text(text, "utf-16")
        code, out, err = call("solve", model, tmp_path / name)
        assert (code, err) == (1, "") and f"{tmp_path / name}:3:\n" in out
    (tmp_path / "P.CSV.GZ").write_bytes(gzip.compress(text.encode()))
    assert "P.CSV.GZ:3:\n" in call("solve", model, tmp_path / "P.CSV.GZ")[1]


def test_boards_under_titles(model, puzzles, call, tmp_path):
    file = tmp_path / "boards.txt"
    file.write_text("".join(f"Grid {n}\n{TASK.render(puzzle)}\n" for n, puzzle in enumerate(puzzles[:3], 1)))
    code, out, err = call("solve", model, file)
    places = [f"{file}:{line}" for line in (2, 8, 14)]
    solutions = solve(load(model), TASK, puzzles[:3])
    boards = [f"{place}:\n{printed(solution)}" for place, solution in zip(places, solutions, strict=True)]
    assert (code, out, err) == (1, "".join(boards) + "0 of 3 answers valid\n", "")


def test_a_file_that_unpacks_to_gigabytes_is_refused(model, call, tmp_path, monkeypatch):
    monkeypatch.setattr("hrm.cli.puzzle_input.MAX_BYTES", 1 << 20)
    for name in ("p.txt.gz", "p.csv.gz"):
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(b"0" * (1 << 22))
        code, out, err = call("solve", model, tmp_path / name)
        assert (code, out) == (2, "") and f"{name} has more than 1 MB of text; split it" in err


def test_one_board_over_several_lines(model, puzzles, tmp_path, call):
    (tmp_path / "board.txt").write_text(TASK.render(puzzles[0]) + "\n")
    (solution,) = solve(load(model), TASK, puzzles[:1])
    assert call("solve", model, tmp_path / "board.txt") == (1, printed(solution), "")


def test_bad_puzzles_are_reported_and_the_others_solved(model, puzzles):
    good = [TASK.format(puzzle) for puzzle in puzzles[:2]]
    done = run("solve", model, "-", input=f"{good[0]}\n\n12\n{good[1]}\n{'a' * 16}\n")
    assert done.returncode == 2
    first, second = solve(load(model), TASK, puzzles[:2])
    boards = f"standard input:1:\n{printed(first)}standard input:4:\n{printed(second)}"
    assert done.stdout == boards + "0 of 2 answers valid, 2 puzzles not read\n"
    messages = done.stderr.splitlines()
    assert [message.partition(": Sudoku")[0] for message in messages] == [
        "hrm: standard input:3",
        "hrm: standard input:5",
    ]
    assert "2 cells, expected 16" in messages[0] and "'a' at row 1 column 1" in messages[1]


def test_a_valid_answer_exits_with_0(model, puzzles, call, monkeypatch):
    monkeypatch.setattr(Sudoku, "check", lambda self, inputs, answer: None)
    code, out, _ = call("solve", model, TASK.format(puzzles[0]))
    assert code == 0 and "\nvalid; " in out


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["12"], "'12' is neither a file nor a puzzle: Sudoku with 2 cells, expected 16"),
        (None, ["nowhere/puzzles.txt"], "'nowhere/puzzles.txt' is neither a file nor a puzzle"),
        ("", ["{}"], "p.txt is empty; expected puzzles, one per line"),
        ("12\n34\n", ["{}"], "p.txt has no puzzle: neither the whole is one (Sudoku with 4 cells, expected 16"),
        ("." * 16 + "\n" + "." * 16, ["{}", "--gif", "x.gif"], "--gif and --png draw one puzzle, {} has 2"),
        ("." * 16, ["{}", "--halt", "never"], "halt is 'never', expected 'q', 'fixed', 'stable:K'"),
        ("." * 16, ["{}", "--max-steps", "0"], "'--max-steps': "),
        ("." * 16, ["{}", "--batch-size", "-1"], "'--batch-size': "),
        ("." * 16, ["{}", "--device", "abacus"], "abacus"),
        ("." * 16, ["{}", "--halt", "never"], "or 'auto' (calibrated if the model is, else q)"),
    ],
)
def test_bad_input(model, tmp_path, call, content, arguments, message):
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_text(content)
    code, out, err = call("solve", model, *(argument.format(file) for argument in arguments))
    assert (code, out) == (2, "")
    assert message.format(file) in err and err.startswith("hrm: ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["p.txt"])


RECORD = ["place", "puzzle", "answer", "valid", "verified", "reason", "segments", "confidence", "error"]


@pytest.fixture
def several(puzzles, tmp_path):
    """A file with a puzzle, a line that is not a puzzle, and another puzzle."""
    file = tmp_path / "p.txt"
    file.write_text(f"{TASK.format(puzzles[0])}\n12\n{TASK.format(puzzles[1])}\n")
    return file


def records(model, puzzles, file):
    """The expected records of ``several``, without the text of the error."""
    for line, solution in zip((1, 3), solve(load(model), TASK, puzzles[:2]), strict=True):
        answer = (TASK.format(solution.inputs), TASK.format(solution.answer), False, False, solution.reason)
        values = (f"{file}:{line}", *answer, solution.steps, solution.confidence, None)
        yield dict(zip(RECORD, values, strict=True))
        if line == 1:
            yield dict.fromkeys(RECORD) | {"place": f"{file}:2", "puzzle": "12"}


def test_json_is_one_object_per_line(model, puzzles, several, call):
    code, out, err = call("solve", model, several, "--json")
    first, bad, last = map(json.loads, out.splitlines())
    assert code == 2 and err == f"hrm: {several}:2: {bad['error']}\n" and "Sudoku with 2 cells" in bad["error"]
    assert [first, bad | {"error": None}, last] == list(records(model, puzzles, several))
    code, out, err = call("solve", model, TASK.format(puzzles[0]), "--json", "--trace")
    (solution,), result = solve(load(model), TASK, puzzles[:1]), json.loads(out)
    assert (code, err) == (1, "") and result["answer"] == TASK.format(solution.answer) and result["place"] == ""
    assert [(one["segment"], one["halt"], one["continue"], one["answer"]) for one in result["trace"]] == [
        (frame.step, frame.confidence, frame.continue_value, TASK.format(frame.tokens)) for frame in solution.frames
    ]
    assert [one["changed"] for one in result["trace"]] == [
        solution.changed(index).sum() for index in range(solution.steps)
    ]


@pytest.mark.parametrize("name", ["answers.csv", "answers.JSONL"])
def test_answers_in_a_file(model, puzzles, several, call, tmp_path, name):
    code, out, err = call("solve", model, several, "--out", tmp_path / name)
    assert (code, out) == (2, "0 of 2 answers valid, 1 puzzles not read\n") and err.count("\n") == 1
    text, expected = (tmp_path / name).read_text(), list(records(model, puzzles, several))
    if name.endswith(".csv"):
        result = list(csv.DictReader(io.StringIO(text)))
        expected = [{key: "" if value is None else str(value) for key, value in one.items()} for one in expected]
    else:
        result = [json.loads(line) for line in text.splitlines()]
    errors = [one.pop("error") for one in result]
    assert "Sudoku with 2 cells" in errors[1] and not errors[0] and not errors[2]
    assert result == [{key: value for key, value in one.items() if key != "error"} for one in expected]
    _, out, _ = call("solve", model, several, "--out", tmp_path / name, "--json")
    assert len([json.loads(line) for line in out.splitlines()]) == 3


def test_a_call_that_was_stopped_is_resumed(model, puzzles, call, tmp_path, monkeypatch):
    texts = [TASK.format(one) for one in puzzles]
    source, out, part = (tmp_path / name for name in ("q.txt", "a.jsonl", "a.jsonl.part"))
    source.write_text("\n".join(texts))
    monkeypatch.setattr("hrm.cli.answer_file._MOST", 2)
    asked, solve_all = [], hrm_api.solve

    def stops(model, tokens, **options):
        asked.append(len(tokens))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return solve_all(model, tokens, **options)

    monkeypatch.setattr("hrm.api.solve", stops)
    code, _, err = call("solve", model, source, "--out", out, "--batch-size", 2)
    assert code == 130 and f"the answers so far are in {part}; --resume continues" in err
    assert len(part.read_text().splitlines()) == 1 + 4 and not out.exists()
    code, _, err = call("solve", model, source, "--out", out)
    assert code == 2 and "a.jsonl.part has answers of a call that did not end; add --resume" in err
    with part.open("a") as file:
        lock(file.fileno())
        code, _, err = call("solve", model, source, "--out", out, "--resume")
        assert code == 2 and f"{part} is being written by another call" in err
        file.write('{"place": "cut o')
    source.write_text("\n".join([texts[1], *texts[1:]]))
    code, _, err = call("solve", model, source, "--out", out, "--resume")
    assert code == 2 and "has another puzzle 1 than this call" in err
    source.write_text("\n".join(texts))
    code, _, err = call("solve", model, source, "--out", out, "--resume", "--halt", "fixed")
    assert code == 2 and re.search(
        r"a call with --halt (\w+), and this one has fixed; call with --halt \1, or rem", err
    )
    code, text, _ = call("solve", model, source, "--out", out, "--resume", "--batch-size", 2)
    assert (code, text) == (1, "0 of 6 answers valid\n")
    assert asked == [2, 2, 2, 2] and not part.exists()
    resumed = out.read_text()
    assert call("solve", model, source, "--out", out)[0] == 1 and out.read_text() == resumed
    code, _, err = call("solve", model, source, "--resume")
    assert code == 2 and "--resume continues the file of --out" in err


def test_the_part_of_another_program_is_refused(model, puzzles, call, tmp_path):
    out, part = tmp_path / "a.csv", tmp_path / "a.csv.part"
    for text in ("x,y\n1,2\n", '{"place": ""}\n', "[1]\n", b"\xff\xfe\n"):
        part.write_bytes(text if isinstance(text, bytes) else text.encode())
        code, _, err = call("solve", model, TASK.format(puzzles[0]), "--out", out, "--resume")
        assert code == 2 and f"{part} does not hold answers of this hrm solve; remove it" in err
    part.write_text('{"settings": {"MO')
    assert call("solve", model, TASK.format(puzzles[0]), "--out", out, "--resume")[0] == 1
    assert out.read_text().count("\n") == 2 and not part.exists()


def test_parts_grow_up_to_a_time(tmp_path, monkeypatch):
    now, sizes = [0.0], []
    monkeypatch.setattr("hrm.cli.answer_file.time.monotonic", lambda: now[0])
    for part in AnswerFile(tmp_path / "a.csv", False, {}).parts(range(1000), 2):
        sizes.append(len(part))
        now[0] += 0.1 * len(part)
    assert sizes[:5] == [2, 8, 32, 100, 100] and sum(sizes) == 1000


def test_wrong_input_is_refused_before_torch_is_imported(model, several, tmp_path):
    cases = {
        (several, "--gif", "x.png"): "--gif x.png: expected a name that ends with .gif",
        (several, "--png", "x.gif"): "--png x.gif: expected a name that ends with .png",
        (several, "--out", "x"): "--out x: expected a name that ends with .csv or .jsonl",
        (several, "--out", "x.txt"): "--out x.txt: expected a name that ends with .csv or .jsonl",
        (several, "--halt", "never"): "halt is 'never', expected 'q', 'fixed'",
        (several, "--gif", "x.gif"): f"--gif and --png draw one puzzle, {several} has 3; give a single puzzle",
        ("12",): "'12' is neither a file nor a puzzle: Sudoku with 2 cells, expected 16",
        (tmp_path,): f"{tmp_path} is a folder, expected a puzzle or a file of puzzles",
    }
    (tmp_path / "q.csv").write_text("question\n12\n")
    cases[tmp_path / "q.csv", "--out", tmp_path / "q.csv"] = f"--out {tmp_path / 'q.csv'} is the file with the puzzles"
    calls = [["hrm", "solve", str(model), *map(str, one)] for one in cases]
    calls.append(["hrm", "solve", "nowhere", "." * 16])
    program = f"""
import sys
from hrm.cli import main
for sys.argv in {calls!r}:
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    expected = [*cases.values(), "nowhere does not exist; expected a model folder, a checkpoint file, a hub name"]
    lines = done.stderr.splitlines()
    assert len(lines) == len(expected)
    for line, message in zip(lines, expected):
        assert line.startswith(f"hrm: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.txt", "q.csv"]


@pytest.mark.parametrize("option", ["--gif", "--png"])
def test_pictures_that_cannot_be_written_are_refused_before_the_work(call, tmp_path, option):
    code, out, err = call("solve", "nowhere", "." * 16, option, tmp_path)
    assert (code, out) == (2, "") and err == f"hrm: {tmp_path} is a folder; give the name of a file\n"


def test_standard_input_that_is_not_text(model, call, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff" * 16), "utf-8"))
    code, out, err = call("solve", model, "-")
    assert (code, out) == (2, "") and err.startswith("hrm: standard input cannot be read") and err.count("\n") == 1


def test_a_csv_file_with_a_byte_order_mark(model, puzzles, tmp_path, call):
    (tmp_path / "p.csv").write_text(f"question\n{TASK.format(puzzles[0])}\n", encoding="utf-8-sig")
    assert call("solve", model, tmp_path / "p.csv") == call("solve", model, TASK.format(puzzles[0]))


def test_a_csv_file_without_questions(model, tmp_path, call):
    (tmp_path / "p.csv").write_text("source,board\nx,1\n")
    code, _, err = call("solve", model, tmp_path / "p.csv")
    assert code == 2 and "p.csv:1: no column 'question' in source,board; expected source,question" in err

"""What all commands share: help, version, completion, and errors in one line."""

import io
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from hrm.cli import app, main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'; see hrm --help"),
        (["data", "chess"], "No such command 'chess'; see hrm data --help"),
        (["data", "sudoku"], "Missing option '--out'; see hrm data sudoku --help"),
        (["solve", "model"], "Missing argument 'PUZZLE'; see hrm solve --help"),
        (["solve", "model", "....", "--colour"], "--colour"),
        (["solve", "model", "....", "--max-steps", "two"], "'--max-steps'"),
        (["train"], "Missing argument"),
    ],
)
def test_usage_errors_are_one_line(call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("hrm: ") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_no_arguments_print_the_help(call, arguments):
    code, out, err = call(*arguments)
    assert code in (0, 2) and err == ""  # as the version of typer has it
    assert f"Usage: {' '.join(['hrm', *arguments])}" in out and ("sudoku" if arguments else "train") in out


def test_version(call):
    assert call("--version") == (0, f"hrm {version('hrm')}\n", "")


def test_commands_in_the_order_of_a_first_session(call):
    code, out, _ = call("--help")
    commands = "data train eval solve play calibrate scale adapt analyze export models doctor".split()
    assert code == 0 and re.findall(r"^│ (\w+) ", out, re.M) == commands
    assert "--install-completion" in out


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("hrm sc", ["scale"]),
        ("hrm eval sud", ["sudoku4", "sudoku6", "sudoku9"]),
        ("hrm train sudoku-extreme-f", ["sudoku-extreme-full"]),
        ("hrm eval sudoku4 --puzzle-emb ", ["strict", "keep", "mean", "zero"]),
    ],
)
def test_completion(call, monkeypatch, words, completions):
    monkeypatch.setenv("_HRM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    code, out, err = call()
    assert (code, err) == (0, "") and [line for line in out.splitlines() if line] == completions


def test_help_exits_with_0(call):
    code, out, err = call("solve", "--help")
    assert (code, err) == (0, "") and "Usage: hrm solve" in out


def test_no_help_text_is_read_as_markup_or_an_emoji(call):
    def texts(command):
        yield from filter(None, (command.help, *(getattr(one, "help", None) for one in command.params)))
        for one in getattr(command, "commands", {}).values():
            yield from texts(one)

    helps = list(texts(typer.main.get_command(app)))
    assert len(helps) > 80 and [Text.from_markup(text).plain for text in helps] == helps
    for text in helps:
        console = Console(file=io.StringIO(), width=1000, color_system=None)
        console.print(Markdown(text))
        assert console.file.getvalue().split() == text.split()
    assert "margin:X" in call("solve", "--help")[1]


def test_an_encoding_that_lacks_the_characters_of_a_board(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr("sys.argv", ["hrm", "solve", "sudoku4", "..1.3.......12.."])
    with pytest.raises(SystemExit, match="0"):
        main()
    sys.stdout.flush()
    assert b"\nvalid; " in sys.stdout.buffer.getvalue() and b"?" in sys.stdout.buffer.getvalue()


def test_a_path_that_cannot_be_used_is_one_line(call, tmp_path):
    (tmp_path / "file").write_text("precious")
    code, out, err = call("data", "sudoku", "--size", "4", "--out", tmp_path / "file" / "data")
    assert (code, out) == (2, "")
    assert err == (
        f"hrm: {tmp_path / 'file'}: a file, where a folder is needed; choose another path, or make this one usable\n"
    )
    assert (tmp_path / "file").read_text() == "precious"


def test_bugs_keep_their_traceback(monkeypatch):
    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr("hrm.cli.app", broken)
    monkeypatch.setattr("sys.argv", ["hrm", "doctor"])
    with pytest.raises(KeyError, match="a bug"):
        main()


def test_no_message_contains_control_characters(call, tmp_path):
    """Neither a typed name, nor a key of a file, nor a path in an error of the operating system."""
    evil, shown = "\x1b]0;evil\x07\n", r"\x1b]0;evil\x07\n"
    (tmp_path / "recipe.yaml").write_text('"\\e]0;evil\\a\\n": 1\ndata: x\n')
    (tmp_path / "file").write_text("")
    for arguments in (
        ("train", tmp_path / "recipe.yaml"),
        ("solve", "sudoku4", evil),
        (evil,),
        ("data", "sudoku", "--size", "4", "--out", tmp_path / "file" / evil),
        ("eval", evil, "--data", evil),
        ("eval", "sudoku4", f"data={evil}"),
    ):
        code, out, err = call(*arguments)
        assert code == 2 and err.startswith("hrm: ") and err.endswith("\n") and err[:-1].isprintable(), err
        assert shown in err or "file: a file, where a folder" in err


@pytest.mark.parametrize(
    ("stdout", "code", "message"),
    [("closed pipe", 1, ""), ("/dev/full", 2, "No space left on device")],
)
def test_a_standard_output_that_cannot_be_written(tmp_path, stdout, code, message):
    reader, writer = os.pipe() if stdout == "closed pipe" else (None, os.open(stdout, os.O_WRONLY))
    if reader is not None:
        os.close(reader)
    arguments = ["data", "sudoku", "--size", "4", "--train", "3", "--test", "2", "--out", tmp_path / "data"]
    done = subprocess.run([sys.executable, "-m", "hrm", *arguments], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == code and message in done.stderr.decode(), done.stderr
    assert done.stderr.startswith(b"hrm: ") == bool(message) and done.stderr.count(b"\n") == bool(message)


def test_help_waits_for_no_large_import():
    program = "import sys, hrm.cli; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

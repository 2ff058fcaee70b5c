"""What all subcommands share: how errors are told."""

import io
import os
import subprocess
import sys

import pytest
import typer
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


def test_help_exits_with_0(call):
    code, out, err = call("solve", "--help")
    assert (code, err) == (0, "") and "Usage: hrm solve" in out


def test_no_help_has_what_rich_takes_for_markup_or_an_emoji(call):
    def texts(command):
        yield from filter(None, (command.help, *(getattr(one, "help", None) for one in command.params)))
        for one in getattr(command, "commands", {}).values():
            yield from texts(one)

    found = list(texts(typer.main.get_command(app)))
    assert len(found) > 80 and [Text.from_markup(text).plain for text in found] == found
    assert "margin:X" in call("solve", "--help")[1]


def test_an_encoding_without_the_characters_of_a_board(monkeypatch):
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


def test_errors_of_ours_are_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr("hrm.cli.app", broken)
    monkeypatch.setattr("sys.argv", ["hrm", "doctor"])
    with pytest.raises(KeyError, match="ours"):
        main()


def test_no_message_acts_on_the_terminal(call, tmp_path):
    """Wherever the words come from: a name that was typed, a key of a file, a path the system complains about."""
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
    ("stdout", "code", "said"),
    [("closed pipe", 1, ""), ("/dev/full", 2, "No space left on device")],
)
def test_an_output_that_takes_no_more(tmp_path, stdout, code, said):
    reader, writer = os.pipe() if stdout == "closed pipe" else (None, os.open(stdout, os.O_WRONLY))
    if reader is not None:
        os.close(reader)
    arguments = ["data", "sudoku", "--size", "4", "--train", "3", "--test", "2", "--out", tmp_path / "data"]
    done = subprocess.run([sys.executable, "-m", "hrm", *arguments], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == code and said in done.stderr.decode(), done.stderr
    assert done.stderr.startswith(b"hrm: ") == bool(said) and done.stderr.count(b"\n") == bool(said)

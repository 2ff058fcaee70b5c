"""Fixtures of the tests of the command line."""

import sys

import pytest

from hrm.cli import main


@pytest.fixture
def call(monkeypatch, capsys):
    """Call ``hrm ...`` in this process: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hrm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call

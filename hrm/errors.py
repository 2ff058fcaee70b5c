"""Errors a user can act on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """The user's input does not fit: the message says what it is, what is expected and what to do.

    The command line prints the message only, and exits with 2; ``--debug`` adds the traceback. Messages quote files
    that may come from anywhere, so they are made :func:`printable`.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """``text`` in one line that is safe to show in a terminal: control characters are written as ``\\x1b``."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def describe(error: "ValidationError") -> str:
    """A pydantic error in one line: field, reason and value."""
    problems = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        got = "" if problem["type"] == "missing" or not field else f" (got {_short(problem['input'])})"
        problems.append(f"{field}: {message}{got}" if field else message)
    return "; ".join(problems)


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a number of thousands of digits"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."

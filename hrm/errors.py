"""Errors a user can act on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """Something the user gave does not fit: the message says what came, what was expected and the way out.

    The command line prints the message alone and exits with 2; a traceback comes only with ``--debug``. Messages quote
    files that may come from anywhere, so they are made :func:`printable`.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """``text`` in one line that a terminal shows and does not act on: control characters are written as ``\\x1b``."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def describe(error: "ValidationError") -> str:
    """A pydantic error in one line: field, reason and what came."""
    problems = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        came = "" if problem["type"] == "missing" or not field else f" (got {_short(problem['input'])})"
        problems.append(f"{field}: {message}{came}" if field else message)
    return "; ".join(problems)


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."

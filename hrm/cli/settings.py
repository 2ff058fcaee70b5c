"""``key=value`` arguments of the subcommands that take a few of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hrm.errors import InputError


def read_settings(command: str, values: list[str], **parsers: Callable[[str], Any]) -> dict[str, Any]:
    """The settings among ``values``, parsed; ``data`` (a path) is always one, and has to be there.

    Args:
        command: the subcommand, for messages.
        values: ``key=value`` each.
        parsers: for each further key, what reads its value; it raises ValueError for one that is none.

    Raises:
        InputError: a key is unknown, twice or missing, or a value is malformed.
    """
    known: dict[str, Callable[[str], Any]] = {"data": folder, **parsers}
    settings: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or key not in known:
            more = "".join(f", {name}=" for name in parsers)
            raise InputError(
                f"hrm {command} does not know {value!r}; expected data=DIR{more} "
                f"(the rest are options: hrm {command} --help)"
            )
        if key in settings:
            what = "one data folder" if key == "data" else f"one {key}="
            raise InputError(f"hrm {command} takes {what}, got {' '.join(values)}; give it once")
        if not text:
            raise InputError(f"{key}= names no {'folder; expected data=DIR' if key == 'data' else 'value'}")
        try:
            settings[key] = known[key](text)
        except ValueError as error:
            raise InputError(f"hrm {command}: {value} cannot be read ({error})") from None
    if "data" not in settings:
        raise InputError(f"hrm {command} needs a data folder; give data=DIR")
    return settings


def folder(text: str) -> Path:
    """A path; the shell leaves the ~ of ``data=~/x`` alone."""
    return Path(text).expanduser()


def numbers(text: str) -> list[int]:
    """``1,4,16``, each 1 or more."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(f"{min(found)} is below 1")
    return found


def yes_or_no(text: str) -> bool:
    """``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"

"""Numbers and tables as text."""

import math
from collections.abc import Iterable


def digits(value: float) -> str:
    """A number with three digits."""
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"


def seconds(value: float) -> str:
    """A time with three digits, in seconds, milliseconds or microseconds."""
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
    return f"{digits(value * factor)} {unit}"


def size(value: float) -> str:
    """A number of bytes with three digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{digits(value)} {unit}"


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def header(cells: list[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(cells), line(["---"] * len(cells))]

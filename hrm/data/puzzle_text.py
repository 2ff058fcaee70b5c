"""Puzzles in a text as people keep them: one per line or boards over several lines, with or without titles."""

from math import isqrt

from hrm.data.task import PuzzleTask
from hrm.errors import InputError


def split_text(task: PuzzleTask, place: str, text: str) -> list[tuple[str, str]]:
    """Split ``text`` into puzzles: pairs of ``<place>:<line>`` and the puzzle's text.

    The whole text is one board; otherwise it consists of blocks, which end at a blank line or at the title of the next
    block. A block is one board, or has one puzzle per line, or boards with the same number of lines. A malformed puzzle
    is returned, too: parsing it gives the reason.

    Raises:
        InputError: the text has no puzzle.
    """
    as_board = _error(task, text)
    if as_board is None:
        return [(place, text)]
    lines = text.splitlines()  # only line ends are removed: a space can be a cell
    puzzles: list[tuple[int, str]] = []
    start = 0
    for end in range(len(lines) + 1):
        blank = end == len(lines) or not lines[end].strip()
        if blank or _is_title(task, lines[end]):
            puzzles += [(start + at, board) for at, board in _of_block(task, lines[start:end])]
            start = end + blank
    if not puzzles:
        raise InputError(f"{place} is empty; expected puzzles, one per line")
    errors = [_error(task, board) for _, board in puzzles]
    if all(errors) and sum(bool(line.strip()) for line in lines) > 1:
        raise InputError(f"{place} has no puzzle: neither the whole is one ({as_board}) nor a part of it ({errors[0]})")
    return [(f"{place}:{at + 1}", board) for at, board in puzzles]


def _of_block(task: PuzzleTask, lines: list[str]) -> list[tuple[int, str]]:
    """The puzzles in consecutive lines, each with the number of its first line."""
    if not lines:
        return []
    title = len(lines) > 2 and _is_title(task, lines[0])  # in a block of two lines, the first may be a malformed puzzle
    board = "\n".join(lines[title:])
    if _error(task, board) is None or not task.fits_a_line(lines[-1]):
        return [(int(title), board)]
    each = list(enumerate(lines))
    if any(_error(task, line) is None for line in lines):
        return each
    for height in range(2, min(len(lines), 2 * isqrt(task.seq_len) + 2)):  # each row may have a ruled line
        if _error(task, "\n".join(lines[:height])) is None:
            return [(at, "\n".join(lines[at : at + height])) for at in range(0, len(lines), height)]
    return each if 2 * max(map(len, lines)) > task.seq_len else [(int(title), board)]


def _is_title(task: PuzzleTask, line: str) -> bool:
    return any(letter.isalpha() and letter not in task.letters for letter in line)


def _error(task: PuzzleTask, text: str) -> InputError | None:
    try:
        task.parse(text)
    except InputError as error:
        return error
    return None

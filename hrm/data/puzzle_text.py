"""Puzzles in a text, as people keep them: one a line, boards over several lines, under titles or not."""

from math import isqrt

from hrm.data.task import PuzzleTask
from hrm.errors import InputError


def split_text(task: PuzzleTask, place: str, text: str) -> list[tuple[str, str]]:
    """The puzzles of ``text``: of each its place, ``<place>:<line>``, and its text.

    The whole is one board. Or else each block is, up to a blank line or the title of the next; or it has a puzzle in
    each line, or boards of equally many lines. A puzzle that cannot be read is among those returned: to parse it says
    what is wrong with it.

    Raises:
        InputError: there is no puzzle at all.
    """
    as_board = _error(task, text)
    if as_board is None:
        return [(place, text)]
    lines = text.splitlines()  # only line ends are taken off: a space can be a cell
    puzzles: list[tuple[int, str]] = []
    start = 0
    for end in range(len(lines) + 1):
        blank = end == len(lines) or not lines[end].strip()
        if blank or _is_title(task, lines[end]):
            puzzles += [(start + at, board) for at, board in _of_block(task, lines[start:end])]
            start = end + blank
    if not puzzles:
        raise InputError(f"{place} is empty; expected puzzles, one a line")
    errors = [_error(task, board) for _, board in puzzles]
    if all(errors) and sum(bool(line.strip()) for line in lines) > 1:
        raise InputError(f"{place} has no puzzle: it is no board ({as_board}), and its parts are none ({errors[0]})")
    return [(f"{place}:{at + 1}", board) for at, board in puzzles]


def _of_block(task: PuzzleTask, lines: list[str]) -> list[tuple[int, str]]:
    """The puzzles in consecutive lines, with the number of the line where each begins."""
    if not lines:
        return []
    title = len(lines) > 2 and _is_title(task, lines[0])  # of one line above another, the first may be a bad puzzle
    board = "\n".join(lines[title:])
    if _error(task, board) is None or not task.fits_a_line(lines[-1]):
        return [(int(title), board)]
    each = list(enumerate(lines))
    if any(_error(task, line) is None for line in lines):
        return each
    for height in range(2, min(len(lines), 2 * isqrt(task.seq_len) + 2)):  # with a ruled line at each row
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

"""Sudoku of sizes 4 (boxes 2 x 2), 6 (2 x 3) and 9 (3 x 3): the task, a solver, a generator, augmentation.

Tokens: 0 pad, 1 blank, 2 and up the digits (https://arxiv.org/abs/2506.21734 and its data set sudoku-extreme).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from hrm.data.format import SetBuilder
from hrm.data.puzzle_csv import CsvTask, Puzzles, row_keys
from hrm.data.task import Cell
from hrm.errors import InputError
from hrm.sizes import require_memory

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by size."""

_BLANK = 1
_BLANKS = ".0*_?xX"
_DROPPED = dict.fromkeys(map(ord, "|-+=│─┼ \t\r\n,;"))  # what people draw between cells
_CLUE, _FILLED, _WRONG = "#000000", "#1f5fd0", "#f8c9c9"

# A board seen as [bands, rows in a band, stacks, columns in a stack, ...]: the axes that run inside a unit.
_UNITS = {"row": (2, 3), "column": (0, 1), "box": (1, 3)}
_CELLS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Sudoku(CsvTask):
    """Sudoku of one size."""

    size: int = 9

    name: ClassVar[str] = "sudoku"
    symbols: ClassVar[dict[str, int]] = {
        **dict.fromkeys(_BLANKS, _BLANK),
        **{str(digit): digit + 1 for digit in range(1, 10)},
    }
    letters: ClassVar[str] = "xX"
    lengths: ClassVar[str] = "16, 36 or 81 (sizes 4, 6, 9)"

    def __post_init__(self) -> None:
        if self.size not in BOXES:
            raise InputError(f"Sudoku of size {self.size} is not known; choose 4, 6 or 9")

    @classmethod
    def of_length(cls, length: int) -> "Sudoku | None":
        return next((cls(size) for size in BOXES if size * size == length), None)

    @classmethod
    def of_text(cls, text: str) -> "Sudoku | None":
        return cls.of_length(len(text.translate(_DROPPED)))

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "Sudoku | None":
        task = cls.of_length(seq_len)
        return task if task and task.vocab_size == vocab_size else None

    @property
    def vocab_size(self) -> int:
        return self.size + 2

    @property
    def seq_len(self) -> int:
        return self.size * self.size

    @property
    def box(self) -> tuple[int, int]:  # type: ignore[override]
        return BOXES[self.size]

    def one_line(self, text: str) -> str:
        return text.translate(_DROPPED)

    def parse(self, text: str) -> np.ndarray:
        cells = self.one_line(text)
        if len(cells) != self.seq_len:
            raise InputError(
                f"Sudoku with {len(cells)} cells, expected {self.seq_len} ({self.size} x {self.size}); "
                "write digits, and . or 0 for a blank"
            )
        for index, character in enumerate(cells):
            if self.symbols.get(character, 99) > self.size + 1:
                raise InputError(
                    f"Sudoku has {character!r} at {self.place(index)}, "
                    f"expected a digit 1 to {self.size}, or . or 0 for a blank"
                )
        tokens = np.array([self.symbols[character] for character in cells], np.uint8)
        repeated = self._repeated(tokens)
        if repeated:
            raise InputError(f"Sudoku has no solution: {repeated}; correct the clues")
        return tokens

    def format(self, tokens: np.ndarray) -> str:
        return "".join(_digit(token) or "." for token in np.ravel(tokens))

    def render(self, tokens: np.ndarray) -> str:
        height, width = self.box
        ruler = "─┼─".join(["─" * (2 * width - 1)] * (self.size // width))
        lines = []
        for index, row in enumerate(np.reshape(tokens, (self.size, self.size))):
            if index and index % height == 0:
                lines.append(ruler)
            digits = [_digit(token) or "." for token in row]
            lines.append(" │ ".join(" ".join(digits[at : at + width]) for at in range(0, self.size, width)))
        return "\n".join(lines)

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        inputs, answer = np.ravel(inputs), np.ravel(answer)
        if len(inputs) != self.seq_len or len(answer) != self.seq_len:
            return f"{len(inputs)} and {len(answer)} cells, expected {self.seq_len}"
        for index in np.flatnonzero((answer <= _BLANK) | (answer > self.size + 1)):
            return f"{self.place(int(index))} is not a digit 1 to {self.size}"
        for index in np.flatnonzero((inputs > _BLANK) & (inputs != answer)):
            return f"{self.place(int(index))} is {answer[index] - 1} where the puzzle gives {inputs[index] - 1}"
        return self._repeated(answer)

    def solves(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        good = ((inputs <= _BLANK) | (inputs == answers)).all(1)
        good &= ((answers > _BLANK) & (answers <= self.size + 1)).all(1)
        boards = _boards(_MASKS[np.where(good[:, None], answers, 0)].T, self.size)
        for axes in _UNITS.values():
            good &= (np.bitwise_or.reduce(boards, axes) == (1 << self.size) - 1).all((0, 1))
        return good

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        tokens, inputs = np.ravel(tokens).astype(int), np.ravel(inputs)
        clue = inputs > _BLANK
        wrong = self._conflicts(tokens) | (clue & (tokens != inputs))
        flat = [
            Cell(_digit(token), _WRONG if bad else "#ffffff", _CLUE if given else _FILLED)
            for token, bad, given in zip(tokens, wrong, clue, strict=True)
        ]
        return [flat[start : start + self.size] for start in range(0, self.seq_len, self.size)]

    def _conflicts(self, tokens: np.ndarray) -> np.ndarray:
        """``[seq_len]`` bool: the cells whose digit stands twice in a row, column or box."""
        masks = _boards(_MASKS[np.minimum(tokens, 10)].reshape(-1, 1), self.size)
        double = np.zeros_like(masks)
        for axes in _UNITS.values():
            double |= _once_twice(masks, axes)[1]
        return (masks & double).ravel() != 0

    def _repeated(self, tokens: np.ndarray) -> str | None:
        """The first digit that stands twice in a unit, in words."""
        masks = _boards(_MASKS[tokens].reshape(-1, 1), self.size)
        for name, axes in _UNITS.items():
            twice = _once_twice(masks, axes)[1].ravel()
            for unit in np.flatnonzero(twice):
                return f"{name} {unit + 1} has {int(twice[unit]).bit_length()} twice"
        return None


def _digit(token: int) -> str:
    return str(int(token) - 1) if token > _BLANK else ""


# The set of digits a token stands for, as bits; a blank or pad stands for none.
_MASKS = np.concatenate([[0, 0], 1 << np.arange(9)]).astype(np.uint16)
_BITS = np.array([bin(mask).count("1") for mask in range(1 << 9)], np.uint8)


def _boards(cells: np.ndarray, size: int) -> np.ndarray:
    """``[size², n]`` -> ``[bands, rows, stacks, columns, n]``, the axes of _UNITS."""
    height, width = BOXES[size]
    return cells.reshape(width, height, height, width, -1)


def _once_twice(boards: np.ndarray, axes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The bits that occur in each unit, and those that occur more than once; ``axes`` have length 1."""
    cells = np.moveaxis(boards, axes, (0, 1))
    once = np.zeros(cells.shape[2:], boards.dtype)
    twice, both = np.zeros_like(once), np.empty_like(once)
    for line in cells:
        for cell in line:
            np.bitwise_and(once, cell, out=both)
            twice |= both
            once |= cell
    return np.expand_dims(once, axes), np.expand_dims(twice, axes)


def _propagate(cells: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Strike digits that a solved cell takes, then fix digits with one place left in a unit, once everywhere.

    Returns the new candidates ``[size², n]`` and ``[n]`` whether the board has become impossible.
    """
    boards = _boards(cells, size)
    solved = np.where(boards & (boards - 1), 0, boards)
    taken = np.zeros_like(boards)
    impossible = np.zeros(boards.shape[-1], bool)
    for axes in _UNITS.values():
        once, twice = _once_twice(solved, axes)
        taken |= once
        impossible |= twice.any(_CELLS)
    boards = boards & (~taken | solved)
    impossible |= ~boards.all(_CELLS)
    alone = np.zeros_like(boards)
    for axes in _UNITS.values():
        once, twice = _once_twice(boards, axes)
        impossible |= (once != (1 << size) - 1).any(_CELLS)
        alone |= once & ~twice
    alone &= boards
    impossible |= (alone & (alone - 1)).any(_CELLS)  # the only place of two digits
    np.copyto(boards, alone, where=alone != 0)
    return boards.reshape(cells.shape), impossible


class Solutions(NamedTuple):
    """What :func:`solve` finds.

    Attributes:
        answers: ``[n, seq_len]`` uint8 tokens of a solution, all 0 where there is none.
        counts: ``[n]`` int64: 0, 1, or 2 for two and more solutions.
        ratings: ``[n]`` int64 guesses tried: the digits tried in a cell with the fewest candidates, summed over
            all cells where propagation alone did not go on (exhaustive where there is one solution).
    """

    answers: np.ndarray
    counts: np.ndarray
    ratings: np.ndarray


def solve(inputs: np.ndarray, progress: Callable[[int], None] | None = None) -> Solutions:
    """Solve ``[n, seq_len]`` tokens of Sudokus, all at once.

    ``progress`` is called with the number of puzzles that have been begun.

    Raises:
        InputError: seq_len is that of no Sudoku.
    """
    task = Sudoku.of_length(inputs.shape[1])
    if task is None:
        raise InputError(f"Sudokus of {inputs.shape[1]} cells, expected {Sudoku.lengths}")
    masks = _MASKS[inputs]
    masks[inputs <= _BLANK] = (1 << task.size) - 1
    return _search(masks.T, task.size, 2, progress)


_WIDTH = 4096  # boards propagated together: 81 x 4096 masks of 2 bytes (660 KB) still lie in an L2 cache


def _search(start: np.ndarray, size: int, limit: int, progress: Callable[[int], None] | None = None) -> Solutions:
    """Count solutions up to ``limit`` from candidate masks ``[size², n]``: depth first, many boards abreast.

    Each pass propagates once on all active boards. Those that changed stay; those that did not are solved or give
    way to a board for each candidate of their first cell with the fewest, on the stack.
    """
    total = start.shape[1]
    found = np.zeros(start.shape, np.uint16)
    counts, guesses = np.zeros(total, np.int64), np.zeros(total, np.int64)
    stack: list[tuple[np.ndarray, np.ndarray]] = []
    cells, owner, begun = start[:, :0], np.arange(0), 0
    while len(owner) or stack or begun < total:
        while len(owner) < _WIDTH // 2 and (stack or begun < total):
            if stack:
                more, owners = stack.pop()
            else:
                end = min(begun + _WIDTH // 2, total)
                more, owners, begun = start[:, begun:end], np.arange(begun, end), end
                if progress:
                    progress(begun)
            cells, owner = np.concatenate([cells, more], 1), np.concatenate([owner, owners])
        before = cells
        cells, impossible = _propagate(before, size)
        alive = ~impossible & (counts[owner] < limit)
        stuck = alive & (cells == before).all(0)
        moving = np.flatnonzero(alive ^ stuck)
        stuck_at = np.flatnonzero(stuck)
        if len(moving) == len(owner):
            continue
        boards, owners = np.take(cells, stuck_at, 1), owner[stuck_at]
        cells, owner = np.take(cells, moving, 1), owner[moving]
        choices = _BITS[boards]
        choices[choices == 1] = 255
        where, column = choices.argmin(0), np.arange(len(owners))
        least = choices[where, column].astype(np.int64)
        solved = least == 255
        np.add.at(counts, owners[solved], 1)
        found[:, owners[solved]] = boards[:, solved]
        least[solved] = 0
        np.add.at(guesses, owners, least)
        left = np.where(solved, np.uint16(0), boards[where, column])
        while left.any():
            open_at = np.flatnonzero(left)
            bit = left[open_at] & (~left[open_at] + np.uint16(1))
            child = np.take(boards, open_at, 1)
            child[where[open_at], np.arange(len(open_at))] = bit
            stack.append((child, owners[open_at]))
            left[open_at] ^= bit
    answers = np.zeros((total, size * size), np.uint8)
    for digit in range(size):
        answers[found.T == 1 << digit] = digit + 2
    return Solutions(answers, np.minimum(counts, limit), guesses)


def augment(inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random equivalent puzzle of each: the same for question and answer.

    Digits are permuted, bands, rows in bands, stacks and columns in stacks are permuted, and where boxes are square
    half of the boards are transposed.

    Args:
        inputs, labels: ``[n, seq_len]`` uint8 tokens.
        rng: where the randomness comes from.

    Returns:
        Two new arrays of the same shape and dtype.
    """
    count, length = inputs.shape
    size = int(length**0.5)
    height, width = BOXES[size]
    rows = _shuffled_lines(count, size // height, height, rng)
    columns = _shuffled_lines(count, size // width, width, rng)
    index = rows[:, :, None] * size + columns[:, None, :]
    if height == width:
        transposed = rng.random(count) < 0.5
        index[transposed] = columns[transposed][:, None, :] * size + rows[transposed][:, :, None]
    index = index.reshape(count, length)
    digits = np.tile(np.arange(size + 2, dtype=np.uint8), (count, 1))
    digits[:, 2:] = rng.permuted(digits[:, 2:], axis=1)
    return tuple(  # type: ignore[return-value]
        np.take_along_axis(digits, np.take_along_axis(tokens, index, 1), 1) for tokens in (inputs, labels)
    )


def _shuffled_lines(count: int, blocks: int, within: int, rng: np.random.Generator) -> np.ndarray:
    """``[count, blocks * within]`` int16: random orders of blocks of lines, and of the lines in each block."""
    outer = rng.permuted(np.tile(np.arange(blocks, dtype=np.int16), (count, 1)), axis=1)
    inner = rng.permuted(np.tile(np.arange(within, dtype=np.int16), (count, blocks, 1)), axis=2)
    return (outer[:, :, None] * within + inner).reshape(count, -1)


def _full_boards(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """``[n, seq_len]`` tokens of random solved boards, n at most ``count``.

    Boxes that share no row and no column are filled at random, the search completes them (some of size 4 and 6
    cannot be), and augmentation takes away the search's liking for small digits in front.
    """
    height, width = BOXES[size]
    board = np.zeros((count, width, height, height, width), np.uint8)
    digits = np.tile(np.arange(2, size + 2, dtype=np.uint8), (count, 1))
    for box in range(min(height, width)):
        board[:, box, :, box, :] = rng.permuted(digits, axis=1).reshape(count, height, width)
    masks = _MASKS[board.reshape(count, -1)]
    masks[masks == 0] = (1 << size) - 1
    answers, counts, _ = _search(masks.T, size, 1)
    answers = answers[counts == 1]
    return augment(answers, answers, rng)[0]


def _minimal(answers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take clues away in random order while the solution stays the only one: ``[n, seq_len]`` tokens."""
    count, length = answers.shape
    size = int(length**0.5)
    everything = np.uint16((1 << size) - 1)
    solution = _MASKS[answers]
    masks = solution.copy()
    order = rng.permuted(np.tile(np.arange(length), (count, 1)), axis=1)
    rows = np.arange(count)
    for cell in order.T:
        # A second solution would differ here, as the puzzle with this clue has one: ask for all other digits.
        masks[rows, cell] = everything ^ solution[rows, cell]
        needed = _search(masks.T, size, 1).counts > 0
        masks[rows, cell] = np.where(needed, solution[rows, cell], everything)
    return np.where(masks == everything, np.uint8(_BLANK), answers)


def _with_extra_clues(inputs: np.ndarray, answers: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Fill 0 to ``most`` random blanks of each puzzle from its answer."""
    blank = inputs == _BLANK
    order = np.where(blank, rng.random(inputs.shape), 2).argsort(1).argsort(1)  # the rank of a cell, blanks first
    given = order < rng.integers(0, most + 1, (len(inputs), 1))
    return np.where(blank & given, answers, inputs)


_BARREN = 5_000  # boards in a row without a new puzzle, after which the generator gives up


def generate(
    count: int,
    size: int,
    rng: np.random.Generator,
    min_rating: int = 0,
    progress: Callable[[int], None] | None = None,
    extra_clues: int = 0,
) -> Puzzles:
    """Make ``count`` distinct puzzles with one solution each; without ``extra_clues`` no clue can be taken away.

    Args:
        count: number of puzzles.
        size: 4, 6 or 9.
        rng: where the randomness comes from.
        min_rating: least number of guesses :func:`solve` needs.
        progress: called with the number of puzzles made so far.
        extra_clues: each puzzle gets a random number of clues, up to this, beyond those it needs: easier ones.

    Raises:
        InputError: size is unknown, or no new puzzle of that rating turns up any more.
    """
    Sudoku(size)
    batches: list[Puzzles] = []
    known = np.zeros(0, np.uint64)
    made = barren = 0
    batch = min(max(count + count // 4, 64), 1024)
    while made < count:
        boards = _full_boards(batch, size, rng)
        inputs = _minimal(boards, rng)
        if extra_clues:
            inputs = _with_extra_clues(inputs, boards, extra_clues, rng)
        labels, counts, ratings = solve(inputs)
        keys, first = np.unique(row_keys(inputs), return_index=True)
        keep = np.sort(first[~np.isin(keys, known)])
        keep = keep[(counts[keep] == 1) & (ratings[keep] >= min_rating)][: count - made]
        barren = 0 if len(keep) else barren + batch
        if barren > _BARREN:
            wanted = f" of rating {min_rating} or more" if min_rating else ""
            raise InputError(
                f"only {made} of {count} distinct {size} x {size} Sudokus{wanted} turned up; "
                "ask for fewer" + (", or lower --min-rating" if min_rating else "")
            )
        batches.append(Puzzles(inputs[keep], labels[keep], ratings[keep], np.zeros(len(keep), np.int64)))
        known = np.concatenate([known, row_keys(inputs[keep])])
        made += len(keep)
        if progress:
            progress(made)
    return Puzzles.concatenate(batches, size * size)


_FEWER = "lower --augment or --train"
_CHUNK = 65536  # boards augmented at once


def build_set(
    puzzles: Puzzles,
    augmentations: int,
    rng: np.random.Generator,
    avoid: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
) -> SetBuilder:
    """One group for each puzzle: the puzzle itself and ``augmentations`` equivalent ones.

    Args:
        puzzles: the originals.
        augmentations: how many more puzzles a group has.
        rng: where the randomness comes from.
        avoid: ``[m, seq_len]`` tokens of puzzles that must not come up (the test set's): an augmentation that
            is one of them gives way to its original.
        progress: called with the number of groups done.

    Raises:
        InputError: the memory does not hold them.
    """
    size = 2 * puzzles.inputs.shape[1] * (augmentations + 1)
    require_memory(len(puzzles) * size, f"{len(puzzles)} puzzles with {augmentations} equivalent ones each", _FEWER)
    builder = SetBuilder()
    forbidden = row_keys(avoid) if avoid is not None else np.zeros(0, np.uint64)
    per_group = augmentations + 1
    step = max(_CHUNK // per_group, 1)
    for start in range(0, len(puzzles), step):
        inputs, labels = puzzles.inputs[start : start + step], puzzles.labels[start : start + step]
        if augmentations:
            originals = np.repeat(inputs, per_group, 0), np.repeat(labels, per_group, 0)
            inputs, labels = augment(*originals, rng)
            original = np.isin(row_keys(inputs), forbidden)
            original[::per_group] = True
            inputs[original], labels[original] = originals[0][original], originals[1][original]
        builder.add_puzzles(inputs, labels, per_group)
        if progress:
            progress(min(start + step, len(puzzles)))
    return builder

"""One Sudoku: read, shown and checked."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hrm.data.csv_task import CsvTask
from hrm.data.sudoku.augmentation import draw_symmetries
from hrm.data.sudoku.board import BLANK, BOXES, MASKS, SIZES, UNITS, as_units, candidates, once_twice, propagate
from hrm.data.symmetries import Symmetries
from hrm.data.task import Cell
from hrm.errors import InputError

_BLANKS = ".0*_?xX"
_DIGITS = "123456789ABCDEFG"
"""The digits 1 to 16 as single characters."""
_DROPPED = dict.fromkeys(map(ord, "|-+=│─┼ \t\r\n,;"))  # characters that people draw between cells
_CLUE, _FILLED, _WRONG = "#000000", "#1f5fd0", "#f8c9c9"


@dataclass(frozen=True)
class Sudoku(CsvTask):
    """Sudoku of one size."""

    size: int = 9

    name: ClassVar[str] = "sudoku"
    shapes: ClassVar[str] = f"n + 2 with n * n, n one of {SIZES}"
    lengths: ClassVar[str] = f"n * n, n one of {SIZES} (81 for 9 x 9)"

    def __post_init__(self) -> None:
        if self.size not in BOXES:
            raise InputError(f"Sudoku of size {self.size} is not known; choose {SIZES}")

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
    def symbols(self) -> dict[str, int]:  # type: ignore[override]
        digits = {digit: token for token, digit in enumerate(_DIGITS[: self.size], BLANK + 1)}
        small = {digit.lower(): token for digit, token in digits.items()}
        return dict.fromkeys(_BLANKS, BLANK) | digits | small

    @property
    def letters(self) -> str:  # type: ignore[override]
        digits = _DIGITS[9 : self.size]
        return "xX" + digits + digits.lower()

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
        symbols = self.symbols
        for index, character in enumerate(cells):
            if character not in symbols:
                raise InputError(
                    f"Sudoku has {character!r} at {self.place(index)}, "
                    f"expected a digit 1 to {_DIGITS[self.size - 1]}, or . or 0 for a blank"
                )
        tokens = np.array([symbols[character] for character in cells], np.uint8)
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
        for index in np.flatnonzero((answer <= BLANK) | (answer > self.size + 1)):
            return f"{self.place(int(index))} is not a digit 1 to {self.size}"
        for index in np.flatnonzero((inputs > BLANK) & (inputs != answer)):
            return f"{self.place(int(index))} is {answer[index] - 1} but the puzzle says {inputs[index] - 1}"
        return self._repeated(answer)

    def is_solved(self, inputs: np.ndarray) -> bool:
        return bool((inputs > BLANK).all()) and self.check(inputs, inputs) is None

    def impossible(self, inputs: np.ndarray) -> str | None:
        """A repeated clue, or what propagation of the candidates finds, without guesses."""
        inputs = np.ravel(inputs)
        if repeated := self._repeated(inputs):
            return repeated
        before, cells = None, candidates(inputs[None], self.size)
        while before is None or (cells != before).any():
            before = cells
            cells, contradicts = propagate(before, self.size)
            if contradicts[0]:
                return self._contradiction(cells)
        return None

    def solves(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        good = ((inputs <= BLANK) | (inputs == answers)).all(1)
        good &= ((answers > BLANK) & (answers <= self.size + 1)).all(1)
        boards = as_units(MASKS[np.where(good[:, None], answers, 0)].T, self.size)
        for axes in UNITS.values():
            good &= (np.bitwise_or.reduce(boards, axes) == (1 << self.size) - 1).all((0, 1))
        return good

    def symmetries(self, count: int, rng: np.random.Generator) -> Symmetries:
        return draw_symmetries(self.size, count, rng)

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        tokens, inputs = np.ravel(tokens).astype(int), np.ravel(inputs)
        clue = inputs > BLANK
        wrong = self._conflicts(tokens) | (clue & (tokens != inputs))
        flat = [
            Cell(_digit(token), _WRONG if bad else "#ffffff", _CLUE if is_clue else _FILLED)
            for token, bad, is_clue in zip(tokens, wrong, clue, strict=True)
        ]
        return [flat[start : start + self.size] for start in range(0, self.seq_len, self.size)]

    def _contradiction(self, cells: np.ndarray) -> str:
        """What is impossible in candidates ``[size², 1]``, in words."""
        for index in np.flatnonzero(cells == 0):
            return f"no digit fits at {self.place(int(index))}"
        boards = as_units(cells, self.size)
        for name, axes in UNITS.items():
            missing = ((1 << self.size) - 1) & ~np.bitwise_or.reduce(boards, axes).ravel()
            for unit in np.flatnonzero(missing):
                return f"{name} {unit + 1} has no place for {int(missing[unit]).bit_length()}"
        return "the clues contradict each other"

    def _conflicts(self, tokens: np.ndarray) -> np.ndarray:
        """``[seq_len]`` bool: the cells whose digit occurs twice in a row, column or box."""
        masks = as_units(MASKS[np.minimum(tokens, len(MASKS) - 1)].reshape(-1, 1), self.size)
        double = np.zeros_like(masks)
        for axes in UNITS.values():
            double |= once_twice(masks, axes)[1]
        return (masks & double).ravel() != 0

    def _repeated(self, tokens: np.ndarray) -> str | None:
        """The first digit that occurs twice in a unit, in words; None if there is none."""
        masks = as_units(MASKS[tokens].reshape(-1, 1), self.size)
        for name, axes in UNITS.items():
            twice = once_twice(masks, axes)[1].ravel()
            for unit in np.flatnonzero(twice):
                return f"{name} {unit + 1} has {int(twice[unit]).bit_length()} twice"
        return None


def _digit(token: int) -> str:
    return _DIGITS[int(token) - 2] if token > BLANK else ""

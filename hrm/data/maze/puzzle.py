"""One maze: read, shown and checked."""

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import numpy as np

from hrm.data.csv_task import CsvTask
from hrm.data.dihedral import dihedral
from hrm.data.maze.paths import flood
from hrm.data.symmetries import Symmetries
from hrm.data.task import Cell
from hrm.errors import InputError

WALL, FREE, START, GOAL, PATH = range(1, 6)
_CHARACTERS = "?# SGo"
_COLOURS = ("#d9a0a0", "#303030", "#ffffff", "#2f9e44", "#d9480f", "#8fbcf5")
_WRONG = "#f08c8c"

SMALLEST = 5
"""Fewest rows: a maze of 4 x 4 would have the shape of a 4 x 4 Sudoku."""
LARGEST = 1024
"""Most rows: as many cells as :data:`hrm.sizes.Length` allows."""


@dataclass(frozen=True)
class Maze(CsvTask):
    """Mazes of one size."""

    size: int = 30

    name: ClassVar[str] = "maze"
    symbols: ClassVar[dict[str, int]] = {".": FREE} | {
        character: token for token, character in enumerate(_CHARACTERS) if token
    }
    shapes: ClassVar[str] = f"6 with n * n, n at least {SMALLEST}"
    letters: ClassVar[str] = "SGo"
    lengths: ClassVar[str] = f"n * n for a maze of n x n, n at least {SMALLEST} (900 for 30 x 30)"

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise InputError(f"maze of size {self.size} is too small; choose {SMALLEST} or more")
        if self.size > LARGEST:
            raise InputError(f"maze of size {self.size} is too large; choose at most {LARGEST}")

    @classmethod
    def of_length(cls, length: int) -> "Maze | None":
        size = isqrt(length)
        return cls(size) if SMALLEST <= size <= LARGEST and size * size == length else None

    @classmethod
    def of_text(cls, text: str) -> "Maze | None":
        lines = text.strip("\r\n").splitlines()
        if len(lines) < 2:
            return cls.of_length(len(text.strip("\r\n")))
        size = max(len(lines), *map(len, lines))
        return cls(size) if SMALLEST <= size <= LARGEST else None

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "Maze | None":
        return cls.of_length(seq_len) if vocab_size == len(_CHARACTERS) else None

    @property
    def vocab_size(self) -> int:
        return len(_CHARACTERS)

    @property
    def seq_len(self) -> int:
        return self.size * self.size

    def _lines(self, text: str) -> list[str]:
        """The rows of ``text``, or its only line, without surplus blank lines at the end and the start."""
        lines = text.splitlines()
        start, end = 0, len(lines)
        while end - start > 1 and end - start != self.size and not lines[end - 1]:
            end -= 1
        while end - start > 1 and end - start != self.size and not lines[start]:
            start += 1
        return lines[start:end]

    def one_line(self, text: str) -> str:
        lines = self._lines(text)
        # Editors remove spaces at the end of lines.
        return "".join(lines) if len(lines) < 2 else "".join(line.ljust(self.size) for line in lines)

    def parse(self, text: str) -> np.ndarray:
        lines = self._lines(text)
        if len(lines) == 1:
            if len(lines[0]) != self.seq_len:
                raise InputError(f"maze of one line has {len(lines[0])} characters, expected {self.seq_len}")
            text = lines[0]
        else:
            if len(lines) != self.size:
                raise InputError(f"maze has {len(lines)} rows, expected {self.size} (or one line of {self.seq_len})")
            for number, line in enumerate(lines, 1):
                if len(line) > self.size:
                    raise InputError(f"maze row {number} has {len(line)} characters, expected {self.size}")
            text = self.one_line(text)
        for index, character in enumerate(text):
            if character not in self.symbols:
                raise InputError(
                    f"maze has {character!r} at {self.place(index)}, "
                    "expected # (wall), a space or . (free), S (start), G (goal) or o (path)"
                )
        for character in "SG":
            if text.count(character) != 1:
                raise InputError(f"maze has {text.count(character)} {character}, expected one S (start), one G (goal)")
        return np.array([self.symbols[character] for character in text], np.uint8)

    def format(self, tokens: np.ndarray) -> str:
        return "".join(_CHARACTERS[token] for token in np.ravel(tokens))

    def render(self, tokens: np.ndarray) -> str:
        text = self.format(tokens).replace("#", "█").replace("o", "·")
        rule = "─" * self.size
        rows = [f"│{text[start : start + self.size]}│" for start in range(0, self.seq_len, self.size)]
        return "\n".join([f"┌{rule}┐", *rows, f"└{rule}┘"])

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        inputs, answer = np.ravel(inputs), np.ravel(answer)
        if len(inputs) != self.seq_len or len(answer) != self.seq_len:
            return f"{len(inputs)} and {len(answer)} cells, expected {self.seq_len}"
        if miscounted := _miscounted(inputs):
            return miscounted
        for index in np.flatnonzero(~_keeps(inputs, answer)):
            was, now = _CHARACTERS[inputs[index]], _CHARACTERS[answer[index]]
            return f"{self.place(int(index))} is {now!r} where the maze has {was!r}"
        shortest, through, marked = (int(value[0]) for value in self._lengths(inputs[None], answer[None]))
        if shortest < 0:
            return "there is no way from S to G"
        if through < 0:
            return "the path does not connect S and G"
        if through > shortest:
            return f"the path takes {through} steps, the shortest {shortest}"
        if marked != through - 1:
            return f"{marked - through + 1} cells are marked that are not on the path"
        return None

    def is_solved(self, inputs: np.ndarray) -> bool:
        inputs = np.ravel(inputs)
        ends = np.flatnonzero((inputs == START) | (inputs == GOAL))
        # only a maze with a path, or with S beside G, can be: most are not, without a search
        beside = len(ends) == 2 and ends[1] - ends[0] in (1, self.size)
        return bool((beside or (inputs == PATH).any()) and self.check(inputs, inputs) is None)

    def impossible(self, inputs: np.ndarray) -> str | None:
        inputs = np.ravel(inputs)
        if miscounted := _miscounted(inputs):
            return miscounted
        shortest, _, _ = self._lengths(inputs[None], inputs[None])
        return "there is no way from S to G" if shortest[0] < 0 else None

    def solves(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        good = ((inputs == START).sum(1) == 1) & ((inputs == GOAL).sum(1) == 1) & _keeps(inputs, answers).all(1)
        shortest, through, marked = self._lengths(inputs[good], answers[good])
        # As many marked cells as a shortest path has, and they connect S and G: they are a shortest path.
        good[good] = (shortest > 0) & (through == shortest) & (marked == through - 1)
        return good

    def _lengths(self, inputs: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``[n]`` each: fewest steps from S to G, fewest through marked cells (-1: no way), number of marked cells."""
        shape = (-1, self.size, self.size)
        start, goal = ((inputs == token).reshape(shape) for token in (START, GOAL))
        marked = (answers == PATH).reshape(shape)
        shortest, through = (
            flood(free, start)[goal] for free in ((inputs != WALL).reshape(shape), marked | start | goal)
        )
        return shortest, through, marked.sum((1, 2))

    def symmetries(self, count: int, rng: np.random.Generator) -> Symmetries:
        """Draw from the eight symmetries of the square."""
        board = np.arange(self.seq_len).reshape(self.size, self.size)
        turned = np.stack([dihedral(board, transform).ravel() for transform in range(8)])
        tokens = np.arange(self.vocab_size, dtype=np.uint8)
        return Symmetries(turned[rng.integers(0, 8, count)], np.tile(tokens, (count, 1)))

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        tokens, inputs = np.ravel(tokens), np.ravel(inputs)
        kept = _keeps(inputs, tokens)
        flat = [
            Cell(_CHARACTERS[token] if token in (START, GOAL) else "", _COLOURS[token] if good else _WRONG, "#ffffff")
            for token, good in zip(tokens, kept, strict=True)
        ]
        return [flat[start : start + self.size] for start in range(0, self.seq_len, self.size)]


def _miscounted(inputs: np.ndarray) -> str | None:
    """Why a maze does not have one start and one goal; None if it has."""
    for token in (START, GOAL):
        if (inputs == token).sum() != 1:
            return f"the maze has {(inputs == token).sum()} {_CHARACTERS[token]}, expected one"
    return None


def _keeps(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Which cells of the answer fit the maze: walls, start and goal stay, free cells are free or path."""
    open_cells = (inputs == FREE) | (inputs == PATH)
    return np.where(open_cells, (answers == FREE) | (answers == PATH), inputs == answers)

"""The interface of a puzzle task: how one puzzle is read, shown and checked."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hrm.data.symmetries import Symmetries


@dataclass(frozen=True)
class Cell:
    """How one cell of a board is drawn: its text, and its colours as ``#rrggbb``."""

    text: str = ""
    background: str = "#ffffff"
    foreground: str = "#000000"


class PuzzleTask(ABC):
    """A task of one board size: the base class of Sudoku, Maze, Arc and tasks of your own.

    A task of your own defines ``name``, ``vocab_size``, ``seq_len``, :meth:`parse`, :meth:`format` and :meth:`check`,
    and is registered with :func:`hrm.register_task`. Tokens are integers below ``vocab_size``; token 0 is padding. A
    task with boards of several sizes overrides :meth:`from_shape`.
    """

    name: ClassVar[str]
    """The task's name in ``dataset.json`` and on the command line."""
    shapes: ClassVar[str] = ""
    """The vocabulary sizes and sequence lengths that exist, in words, for error messages."""
    letters: ClassVar[str] = ""
    """Letters that a puzzle's text may contain; a line with other letters may be a title."""
    box: tuple[int, int] | None = None
    """Rows and columns between thicker lines in pictures, or None."""
    verifies: ClassVar[bool] = True
    """Whether :meth:`check` accepts right answers and no others; False if it sees only the form of an answer."""

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "PuzzleTask | None":
        """The task whose sequences have this shape, or None if no board size has it.

        By default the class, called without arguments, has one shape.
        """
        task = cls()
        return task if (task.vocab_size, task.seq_len) == (vocab_size, seq_len) else None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token values, padding included."""

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """Number of tokens of a puzzle."""

    @abstractmethod
    def parse(self, text: str) -> np.ndarray:
        """Read one puzzle as a user writes it: text -> ``[seq_len]`` uint8 input tokens.

        Raises:
            hrm.errors.InputError: the text is not a puzzle; the message names the position.
        """

    def fits_a_line(self, line: str) -> bool:
        """Whether this line of a file is a whole puzzle, provided that it can be parsed."""
        return True

    @abstractmethod
    def format(self, tokens: np.ndarray) -> str:
        """Write a puzzle or an answer, ``[seq_len]`` tokens, as one line that :meth:`parse` reads."""

    def render(self, tokens: np.ndarray) -> str:
        """Draw ``[seq_len]`` tokens for a terminal, over several lines if need be; by default :meth:`format`'s line."""
        return self.format(tokens)

    @abstractmethod
    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        """None if ``answer`` solves ``inputs`` (``[seq_len]`` tokens each), else the reason in a few words."""

    def is_solved(self, inputs: np.ndarray) -> bool:
        """Whether the puzzle, ``[seq_len]`` tokens, is its own answer, such as a board without blanks.

        By default :meth:`check` decides. It is called for every puzzle, so a task with a slow check overrides it.
        """
        return self.verifies and self.check(inputs, inputs) is None

    def impossible(self, inputs: np.ndarray) -> str | None:
        """Why the puzzle, ``[seq_len]`` tokens, has no solution, in a few words.

        None if it has one, or if finding out takes long. By default None.
        """
        return None

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        """Rows of cells that draw ``tokens``, a puzzle or an answer to ``inputs``; by default one row of numbers."""
        return [[Cell(str(token)) for token in tokens.tolist()]]

    def symmetries(self, count: int, rng: np.random.Generator) -> Symmetries | None:
        """Draw a symmetry for each of ``count`` puzzles from ``rng``; None, the default, if none are known.

        With the setting ``augment`` each puzzle of a training batch goes through one.
        """
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, seq_len={self.seq_len})"

"""What the model layer has to know of a puzzle task: reading, showing and checking one puzzle."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Cell:
    """How one cell of a board is drawn: text, and colours as ``#rrggbb``."""

    text: str = ""
    background: str = "#ffffff"
    foreground: str = "#000000"


class PuzzleTask(ABC):
    """A task of one board size. Subclasses are listed in :data:`hrm.data.TASKS`."""

    name: ClassVar[str]
    letters: ClassVar[str] = ""
    """Letters that a puzzle's text may hold; a line of a file with others may be a title."""

    @classmethod
    @abstractmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "PuzzleTask | None":
        """The task whose sequences have this shape, or None where the shape is not this task's."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token values, padding included."""

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """Tokens of a puzzle."""

    @abstractmethod
    def parse(self, text: str) -> np.ndarray:
        """One puzzle as a user writes it -> ``[seq_len]`` uint8 input tokens.

        Raises:
            hrm.errors.InputError: the text is no such puzzle; the message names the position.
        """

    def fits_a_line(self, line: str) -> bool:
        """Whether such a line of a file is a puzzle by itself, if it can be parsed at all."""
        return True

    @abstractmethod
    def format(self, tokens: np.ndarray) -> str:
        """``[seq_len]`` tokens of a puzzle or an answer -> one line that :meth:`parse` reads."""

    @abstractmethod
    def render(self, tokens: np.ndarray) -> str:
        """``[seq_len]`` tokens -> the board in several lines, for a terminal."""

    @abstractmethod
    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        """None where ``answer`` solves ``inputs`` (both ``[seq_len]`` tokens), else the reason in a few words."""

    @abstractmethod
    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        """Rows of cells to draw ``tokens``, a puzzle or an answer to ``inputs``."""

    box: tuple[int, int] | None = None
    """Rows and columns between thicker lines in pictures, or None."""

"""The interface of a task whose puzzles are strings of one character per cell, as in the published CSV files."""

from abc import abstractmethod
from typing import ClassVar, TypeVar

import numpy as np

from hrm.data.task import PuzzleTask

Task = TypeVar("Task", bound="CsvTask")


class CsvTask(PuzzleTask):
    """A task whose puzzles are strings of one character per cell."""

    symbols: ClassVar[dict[str, int]]
    """The token of each character."""
    lengths: ClassVar[str]
    """The possible lengths of a puzzle, in words."""

    @classmethod
    @abstractmethod
    def of_text(cls: type[Task], text: str) -> Task | None:
        """The task of a puzzle as people write it, by its number of cells; None if no task has it."""

    @abstractmethod
    def one_line(self, text: str) -> str:
        """The cells of a puzzle as people write it, one character each, whatever their number."""

    @classmethod
    @abstractmethod
    def of_length(cls: type[Task], length: int) -> Task | None:
        """The task whose puzzles have ``length`` cells, or None."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Rows and columns."""

    @abstractmethod
    def solves(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """:meth:`check` for many puzzles: ``[n, seq_len]`` tokens each -> ``[n]`` bool."""

    def place(self, index: int) -> str:
        """The row and column of cell ``index``, in words."""
        return f"row {index // self.size + 1} column {index % self.size + 1}"

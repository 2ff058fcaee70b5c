"""One grid as a puzzle: read, shown and checked."""

import json

import numpy as np

from hrm.data.arc.grids import END, SIDE, VOCAB_SIZE, boards_of, crop, encode, side_of
from hrm.data.arc.tasks import read_grid
from hrm.data.task import Cell, PuzzleTask
from hrm.errors import InputError

_LONGEST = 1 << 17
"""Most characters of a grid's text: 145 per cell of the largest grid, enough for indented JSON."""
PALETTE = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
"""The colours of 0 to 9 in ARC's editor."""


class Arc(PuzzleTask):
    """A grid of ARC-AGI on a board of ``side`` x ``side``. Only the task's demonstrations define the right answer.

    Raises:
        InputError: ``side`` is not 1 to 30.
    """

    name = "arc"
    shapes = f"{VOCAB_SIZE} with {SIDE * SIDE} or the square of a smaller side"
    verifies = False

    def __init__(self, side: int = SIDE):
        if not 1 <= side <= SIDE:
            raise InputError(f"an ARC board of side {side}, expected 1 to {SIDE}")
        self.side = side

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "Arc | None":
        side = side_of(seq_len)
        return cls(side) if side and vocab_size == VOCAB_SIZE else None

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    @property
    def seq_len(self) -> int:
        return self.side * self.side

    def parse(self, text: str) -> np.ndarray:
        """Read a grid, JSON ``[[0, 1], [2, 3]]`` or the lines of digits ``01`` and ``23`` -> ``[seq_len]`` tokens."""
        if len(text) > _LONGEST:
            largest = f"{self.side} x {self.side}"
            raise InputError(f"the ARC grid has {len(text)} characters; expected a grid of at most {largest}")
        if text.lstrip().startswith("["):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:  # ValueError also covers numbers with thousands of digits
                raise InputError(f"the ARC grid is not JSON: {error}") from None
        else:
            lines = text.strip().splitlines()
            if not all(line.strip() for line in lines):
                raise InputError("the ARC grid has a blank line between its rows; expected one grid")
            value = [[int(cell) if cell in "0123456789" else cell for cell in "".join(line.split())] for line in lines]
        return encode(read_grid(value, "the ARC grid", self.side)[None], side=self.side)[0]

    def fits_a_line(self, line: str) -> bool:
        return line.lstrip().startswith("[")  # a line of digits is a row

    def format(self, tokens: np.ndarray) -> str:
        return json.dumps(_shown(tokens).tolist(), separators=(",", ":"))

    def render(self, tokens: np.ndarray) -> str:
        return "\n".join("".join(map(str, row)) for row in _shown(tokens).tolist())

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        """None if ``answer`` is well-formed, a grid with its end markers. Whether it is right is not known here."""
        board, (rows, columns) = boards_of(answer)[0], crop(answer).shape
        if rows == 0:
            return "there is no grid: the token at the top left is not a colour"
        if rows < len(board) and (board[rows, :columns] != END).any():
            return f"the row below the grid of {rows} x {columns} does not consist of end markers"
        if columns < len(board) and (board[:rows, columns] != END).any():
            return f"the column right of the grid of {rows} x {columns} does not consist of end markers"
        return None

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        """The whole board, so that all pictures of an animation have the same size."""
        kinds = [Cell(), Cell(background="#dddddd"), *(Cell(background=colour) for colour in PALETTE)]
        return [[kinds[token] for token in row] for row in boards_of(tokens)[0].tolist()]


def _shown(tokens: np.ndarray) -> np.ndarray:
    """The grid in the tokens, wherever it is on the board (training examples are shifted)."""
    board = boards_of(tokens)[0]
    used = board != 0
    row, column = int(used.any(axis=1).argmax()), int(used.any(axis=0).argmax())
    return crop(np.pad(board[row:, column:], ((0, row), (0, column))).reshape(-1))

"""Generate Sudokus with one solution."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hrm.data.puzzles import Puzzles, row_keys
from hrm.data.sudoku.augmentation import augment
from hrm.data.sudoku.board import BLANK, BOXES, MASKS
from hrm.data.sudoku.puzzle import Sudoku
from hrm.data.sudoku.solver import search, solve
from hrm.errors import InputError


def _full_boards(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """``[n, seq_len]`` tokens of random solved boards, n at most ``count``.

    Boxes that share no row and no column are filled at random, and the search completes the boards (some of size 4
    and 6 have no completion). The search prefers small digits in the first cells; augmentation removes this bias.
    """
    height, width = BOXES[size]
    board = np.zeros((count, width, height, height, width), np.uint8)
    digits = np.tile(np.arange(2, size + 2, dtype=np.uint8), (count, 1))
    for box in range(min(height, width)):
        board[:, box, :, box, :] = rng.permuted(digits, axis=1).reshape(count, height, width)
    masks = MASKS[board.reshape(count, -1)]
    masks[masks == 0] = (1 << size) - 1
    answers, counts, _ = search(masks.T, size, 1)
    answers = answers[counts == 1]
    return augment(answers, answers, rng)[0]


def _minimal(answers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Remove clues in random order as long as there is only one solution: ``[n, seq_len]`` tokens."""
    count, length = answers.shape
    size = int(length**0.5)
    any_digit = np.uint16((1 << size) - 1)
    solution = MASKS[answers]
    masks = solution.copy()
    order = rng.permuted(np.tile(np.arange(length), (count, 1)), axis=1)
    rows = np.arange(count)
    for cell in order.T:
        # With this clue there is one solution, so a second one would differ in this cell: try all other digits.
        masks[rows, cell] = any_digit ^ solution[rows, cell]
        needed = search(masks.T, size, 1).counts > 0
        masks[rows, cell] = np.where(needed, solution[rows, cell], any_digit)
    return np.where(masks == any_digit, np.uint8(BLANK), answers)


class Difficulty(NamedTuple):
    """Which puzzles to generate. The fewer clues beyond the needed ones, the harder.

    Attributes:
        min_rating: least number of guesses that :func:`solve` needs.
        max_rating: most guesses; 0 for puzzles that need none (naked and hidden singles solve them). None: any number.
        extra_clues: most clues beyond the needed ones; each puzzle gets a random number of them.
        clues: least and most clues of a puzzle; each gets a random number in this range. Excludes ``extra_clues``.
    """

    min_rating: int = 0
    max_rating: int | None = None
    extra_clues: int = 0
    clues: tuple[int, int] | None = None

    def __str__(self) -> str:
        """What it asks for, after "Sudokus"."""
        wanted = ""
        if self.max_rating is not None:
            wanted = f" of rating {self.min_rating} to {self.max_rating}"
        elif self.min_rating:
            wanted = f" of rating {self.min_rating} or more"
        return wanted + (f" with {self.clues[0]} to {self.clues[1]} clues" if self.clues else "")


ANY = Difficulty()
"""Minimal puzzles: every clue is needed."""


def _ranks_of_blanks(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of the cells of each puzzle, blanks first: the rank of each cell."""
    return np.where(inputs == BLANK, rng.random(inputs.shape), 2).argsort(1).argsort(1)


def _with_clues(inputs: np.ndarray, answers: np.ndarray, ranks: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Fill the first ``added`` (``[n]``) blanks of each puzzle from its answer."""
    return np.where((inputs == BLANK) & (ranks < added[:, None]), answers, inputs)


_BARREN = 5_000  # the generator gives up after this many consecutive boards without a new puzzle


def generate(
    count: int,
    size: int,
    rng: np.random.Generator,
    difficulty: Difficulty = ANY,
    progress: Callable[[int], None] | None = None,
) -> Puzzles:
    """Generate ``count`` distinct puzzles with one solution each; by default every clue is needed.

    Args:
        count: number of puzzles.
        size: one of :data:`hrm.data.sudoku.BOXES`.
        rng: the source of randomness.
        difficulty: how many clues and guesses.
        progress: called with the number of puzzles made so far.

    Raises:
        InputError: the size is unknown, or the generator finds no new puzzle of this difficulty.
    """
    Sudoku(size)
    extra, clues = difficulty.extra_clues, difficulty.clues
    if extra and clues:
        raise InputError(f"clues {clues[0]} to {clues[1]} and {extra} extra clues exclude each other; give one")
    if clues and not 0 <= clues[0] <= clues[1] <= size * size:
        raise InputError(f"clues {clues[0]} to {clues[1]}: expected a range in 0 to {size * size}, the lower one first")
    batches: list[Puzzles] = []
    known = np.zeros(0, np.uint64)
    made = barren = 0
    batch = min(max(count + count // 4, 64), 1024)
    while made < count:
        boards = _full_boards(batch, size, rng)
        inputs = _minimal(boards, rng)
        if extra:
            ranks = _ranks_of_blanks(inputs, rng)
            inputs = _with_clues(inputs, boards, ranks, rng.integers(0, extra + 1, len(inputs)))
        if clues:
            wanted, needed = rng.integers(clues[0], clues[1] + 1, len(inputs)), (inputs != BLANK).sum(1)
            fits = needed <= wanted
            inputs, boards = inputs[fits], boards[fits]
            inputs = _with_clues(inputs, boards, _ranks_of_blanks(inputs, rng), (wanted - needed)[fits])
        labels, counts, ratings = solve(inputs)
        keys, first = np.unique(row_keys(inputs), return_index=True)
        keep = np.sort(first[~np.isin(keys, known)])
        rated = ratings[keep] >= difficulty.min_rating
        if difficulty.max_rating is not None:
            rated &= ratings[keep] <= difficulty.max_rating
        keep = keep[(counts[keep] == 1) & rated][: count - made]
        barren = 0 if len(keep) else barren + batch
        if barren > _BARREN:
            way_out = ", or for others" if str(difficulty) else ""
            found = f"only {made} of {count} distinct {size} x {size} Sudokus{difficulty} were found"
            raise InputError(f"{found}; ask for fewer{way_out}")
        batches.append(Puzzles(inputs[keep], labels[keep], ratings[keep], np.zeros(len(keep), np.int64)))
        known = np.concatenate([known, row_keys(inputs[keep])])
        made += len(keep)
        if progress:
            progress(made)
    return Puzzles.concatenate(batches, size * size)

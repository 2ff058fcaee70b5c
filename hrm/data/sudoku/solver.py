"""Solve many Sudokus at once: propagate candidates, guess where propagation stops, count the solutions."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hrm.data.sudoku.board import COUNTS, candidates, propagate
from hrm.data.sudoku.puzzle import Sudoku
from hrm.errors import InputError


class Solutions(NamedTuple):
    """The result of :func:`solve`.

    Attributes:
        answers: ``[n, seq_len]`` uint8 tokens of a solution, all 0 if there is none.
        counts: ``[n]`` int64 number of solutions: 0, 1, or 2 for two or more.
        ratings: ``[n]`` int64 number of guesses: where propagation stops, each candidate of the cell with the fewest
            candidates counts as one guess. The search is exhaustive if there is one solution.
    """

    answers: np.ndarray
    counts: np.ndarray
    ratings: np.ndarray

    def __repr__(self) -> str:
        one, more = int((self.counts == 1).sum()), int((self.counts > 1).sum())
        return f"Solutions({len(self.counts):,} puzzles: {one:,} with one solution, {more:,} with more)"


def solve(inputs: np.ndarray, progress: Callable[[int], None] | None = None) -> Solutions:
    """Solve Sudokus, ``[n, seq_len]`` tokens, all at once.

    ``progress`` is called with the number of puzzles started.

    Raises:
        InputError: no Sudoku has this seq_len.
    """
    task = Sudoku.of_length(inputs.shape[1])
    if task is None:
        raise InputError(f"Sudokus of {inputs.shape[1]} cells, expected {Sudoku.lengths}")
    return search(candidates(inputs, task.size), task.size, 2, progress)


_WIDTH = 4096  # boards propagated together: 81 x 4096 masks of 2 bytes (660 KB) fit into an L2 cache


def search(start: np.ndarray, size: int, limit: int, progress: Callable[[int], None] | None = None) -> Solutions:
    """Count solutions up to ``limit`` from candidate masks ``[size², n]``: depth first, many boards at a time.

    Each pass propagates once on all active boards. Boards that change stay active. A board that does not change is
    solved, or it is stuck: it is replaced by one board per candidate of its first cell with the fewest candidates, on
    the stack.
    """
    total = start.shape[1]
    solutions = np.zeros(start.shape, np.uint16)
    counts, guesses = np.zeros(total, np.int64), np.zeros(total, np.int64)
    stack: list[tuple[np.ndarray, np.ndarray]] = []
    cells, owner, started = start[:, :0], np.arange(0), 0
    while len(owner) or stack or started < total:
        while len(owner) < _WIDTH // 2 and (stack or started < total):
            if stack:
                more, owners = stack.pop()
            else:
                end = min(started + _WIDTH // 2, total)
                more, owners, started = start[:, started:end], np.arange(started, end), end
                if progress:
                    progress(started)
            cells, owner = np.concatenate([cells, more], 1), np.concatenate([owner, owners])
        before = cells
        cells, impossible = propagate(before, size)
        alive = ~impossible & (counts[owner] < limit)
        stuck = alive & (cells == before).all(0)
        moving = np.flatnonzero(alive ^ stuck)
        stuck_at = np.flatnonzero(stuck)
        if len(moving) == len(owner):
            continue
        boards, owners = np.take(cells, stuck_at, 1), owner[stuck_at]
        cells, owner = np.take(cells, moving, 1), owner[moving]
        choices = COUNTS[boards]
        choices[choices == 1] = 255
        where, column = choices.argmin(0), np.arange(len(owners))
        least = choices[where, column].astype(np.int64)
        solved = least == 255
        np.add.at(counts, owners[solved], 1)
        solutions[:, owners[solved]] = boards[:, solved]
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
        answers[solutions.T == 1 << digit] = digit + 2
    return Solutions(answers, np.minimum(counts, limit), guesses)

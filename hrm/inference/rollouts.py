"""Several tries at a puzzle, and a vote: more accuracy from the same weights, for more compute.

A rollout sees the puzzle in another guise (digits renamed, bands and lines swapped, the board turned), or starts from
other states, or both; its answer is brought back. Equal answers are counted. Where the task can tell a solution from a
mistake, solutions come first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, tee
from typing import NamedTuple

import numpy as np

from hrm.data.csv_task import CsvTask
from hrm.data.dihedral import dihedral
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.inference.engine import Engine, Puzzle, Result
from hrm.inference.engine.results import sigmoid
from hrm.inference.segments import require_positive


class Symmetry(NamedTuple):
    """A change of a puzzle that changes its solution in the same way.

    Attributes:
        cells: ``[seq_len]`` int: where the token at each position comes from.
        tokens: ``[vocab_size]`` uint8: what each token becomes.
    """

    cells: np.ndarray
    tokens: np.ndarray

    def apply(self, sequence: np.ndarray) -> np.ndarray:
        """``[seq_len]`` tokens of a puzzle -> the changed puzzle."""
        return self.tokens[sequence[self.cells]]

    def undo(self, sequence: np.ndarray) -> np.ndarray:
        """``[seq_len]`` tokens of the changed puzzle's answer -> the puzzle's answer."""
        back = np.empty(len(sequence), np.uint8)
        back[self.cells] = np.argsort(self.tokens)[sequence]
        return back


def symmetry(task: PuzzleTask, number: int, rng: np.random.Generator) -> Symmetry:
    """Symmetry ``number`` of a board of ``task``: 0 is no change.

    A Sudoku's are drawn from ``rng``: digits, bands, rows in bands, stacks, columns in stacks permuted, and where boxes
    are square half of the boards transposed. A maze's are the eight of the square, in turn. Other tasks have none.
    """
    cells, tokens = np.arange(task.seq_len), np.arange(task.vocab_size, dtype=np.uint8)
    if number and isinstance(task, Sudoku):
        height, width = task.box
        board = cells.reshape(task.size, task.size)
        board = board[_shuffled_lines(task.size, height, rng)][:, _shuffled_lines(task.size, width, rng)]
        cells = (board.T if height == width and rng.random() < 0.5 else board).ravel()
        tokens[2:] = rng.permutation(tokens[2:])
    elif isinstance(task, Maze):
        cells = dihedral(cells.reshape(task.size, task.size), number % 8).ravel()
    return Symmetry(cells, tokens)


def _shuffled_lines(size: int, within: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of the blocks of ``within`` lines, and of the lines in each."""
    blocks = rng.permutation(size // within)
    return np.concatenate([block * within + rng.permutation(within) for block in blocks])


@dataclass(frozen=True)
class Candidate:
    """An answer and its votes.

    Attributes:
        tokens: ``[seq_len]``.
        votes: rollouts that gave it.
        confidence: the mean of their confidence, sigmoid(q_halt).
        solves: whether it is known to solve the puzzle; False also where the task cannot tell.
    """

    tokens: np.ndarray
    votes: int
    confidence: float
    solves: bool


def can_verify(task: PuzzleTask) -> bool:
    """Whether ``task.check`` tells solutions from mistakes without knowing the answer (Sudoku, maze)."""
    return isinstance(task, CsvTask)


def ranked(task: PuzzleTask | None, inputs: np.ndarray, answers: Sequence[tuple[np.ndarray, float]]) -> list[Candidate]:
    """The distinct answers, best first: solutions, then by votes, then by mean confidence, then the earlier one.

    Args:
        task: verifies answers where it can; None: nothing does.
        inputs: ``[seq_len]``, the puzzle.
        answers: pairs of ``[seq_len]`` tokens and q_halt.
    """
    votes: dict[bytes, list[float]] = {}
    of: dict[bytes, np.ndarray] = {}
    for tokens, q_halt in answers:
        key = tokens.tobytes()
        of.setdefault(key, tokens)
        votes.setdefault(key, []).append(sigmoid(q_halt))
    verifies = task is not None and can_verify(task)
    candidates = [
        Candidate(
            of[key],
            len(given),
            sum(given) / len(given),
            verifies and task.check(inputs, of[key]) is None,  # type: ignore[union-attr]
        )
        for key, given in votes.items()
    ]
    return sorted(candidates, key=lambda one: (one.solves, one.votes, one.confidence), reverse=True)


class Rollout(NamedTuple):
    """One try at one puzzle.

    Attributes:
        puzzle: number of the puzzle.
        number: of the rollout, 0 being the puzzle as it is.
        symmetry: what was done to it; undo it on the answers.
        result: of the engine.
    """

    puzzle: int
    number: int
    symmetry: Symmetry
    result: Result


def roll_out(
    engine: Engine,
    task: PuzzleTask,
    puzzles: Iterable[Puzzle],
    rollouts: int,
    *,
    augment: bool = True,
    noise: float = 0.0,
    seed: int = 0,
    trace: bool = False,
) -> Iterator[Rollout]:
    """Every puzzle ``rollouts`` times through ``engine``, in order; rollout 0 is the puzzle as it is.

    Args:
        engine: of a model of ``task``.
        task: whose symmetries are used.
        puzzles: what to solve.
        rollouts: tries for each.
        augment: try puzzles in other guises.
        noise: standard deviation of what is added to the initial states (their own is 1).
        seed: of the guises and the noise. Rollout r of puzzle i depends on (seed, i, r) alone.
        trace: keep the answers after each segment.

    Raises:
        InputError: a number is impossible, a puzzle does not fit, or rollouts would be the same as others.
    """
    require_positive(rollouts=rollouts)
    if rollouts > 1 and not noise and not (augment and can_verify(task)):
        raise InputError(
            f"{rollouts} rollouts would all be the same: {'the task has no augmentation here' if augment else 'no'} "
            "augmentation and no noise; give noise=0.5, or one rollout"
        )
    if rollouts > 8 and not noise and augment and isinstance(task, Maze):
        raise InputError(
            f"{rollouts} rollouts of a maze would see its 8 turns and reflections again, and count their votes twice; "
            "give noise=0.5, or at most 8 rollouts"
        )

    def guises() -> Iterator[tuple[int, int, Symmetry, Puzzle]]:
        for index, puzzle in zip(count(), puzzles):
            for number in range(rollouts):
                rng = np.random.default_rng((seed, index, number))
                guise = symmetry(task, number if augment else 0, rng)
                inputs = guise.apply(np.asarray(puzzle.inputs))
                own = noise if number else 0.0
                yield index, number, guise, Puzzle(inputs, puzzle.identifier, own, int(rng.integers(2**62)))

    ours, engines = tee(guises())
    results = engine.solve((puzzle for *_, puzzle in engines), trace=trace)
    for result, (index, number, guise, _) in zip(results, ours):
        if result.error is not None:
            raise result.error
        yield Rollout(index, number, guise, result)

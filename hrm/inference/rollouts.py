"""Several attempts at a puzzle, and a vote: more accuracy from the same weights, for more compute.

A rollout solves a variant of the puzzle (digits renamed, bands and lines swapped, the board turned), or starts from
noisy states, or both; the change is undone in its answer. Equal answers are counted. If the task can verify answers,
solutions come first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
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
        cells: ``[seq_len]`` int: the position from which each token is taken.
        tokens: ``[vocab_size]`` uint8: the token that replaces each token.
    """

    cells: np.ndarray
    tokens: np.ndarray

    def apply(self, sequence: np.ndarray) -> np.ndarray:
        """``[seq_len]`` tokens of a puzzle -> its variant."""
        return self.tokens[sequence[self.cells]]

    def undo(self, sequence: np.ndarray) -> np.ndarray:
        """``[seq_len]`` tokens of the variant's answer -> the puzzle's answer."""
        answer = np.empty(len(sequence), np.uint8)
        answer[self.cells] = np.argsort(self.tokens)[sequence]
        return answer


def symmetry(task: PuzzleTask, number: int, rng: np.random.Generator) -> Symmetry:
    """Symmetry ``number`` of a board of ``task``: 0 is no change.

    Those of a Sudoku are drawn from ``rng``: digits, bands, rows in bands, stacks and columns in stacks are permuted,
    and half of the boards with square boxes are transposed. Those of a maze are the eight of the square, in turn. Other
    tasks have none.
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
        votes: number of rollouts with this answer.
        confidence: their mean confidence, sigmoid(q_halt).
        solves: whether the answer is known to solve the puzzle; False also if the task cannot verify answers.
    """

    tokens: np.ndarray
    votes: int
    confidence: float
    solves: bool


def can_verify(task: PuzzleTask) -> bool:
    """Whether ``task.check`` recognizes solutions without knowing the answer (Sudoku, maze)."""
    return isinstance(task, CsvTask)


def ranked(task: PuzzleTask | None, inputs: np.ndarray, answers: Sequence[tuple[np.ndarray, float]]) -> list[Candidate]:
    """The distinct answers, best first: solutions, then by votes, then by mean confidence, then the earlier one.

    Args:
        task: verifies answers if it can; None: answers are not verified.
        inputs: ``[seq_len]``, the puzzle.
        answers: pairs of ``[seq_len]`` tokens and q_halt.
    """
    verifier = task if task is not None and can_verify(task) else None
    votes: dict[bytes, tuple[np.ndarray, list[float]]] = {}  # by answer: its tokens, the confidence of each vote
    for tokens, q_halt in answers:
        _, confidences = votes.setdefault(tokens.tobytes(), (tokens, []))
        confidences.append(sigmoid(q_halt))
    candidates = [
        Candidate(
            tokens,
            len(confidences),
            sum(confidences) / len(confidences),
            verifier is not None and verifier.check(inputs, tokens) is None,
        )
        for tokens, confidences in votes.values()
    ]
    return sorted(candidates, key=lambda one: (one.solves, one.votes, one.confidence), reverse=True)


class Rollout(NamedTuple):
    """One attempt at one puzzle.

    Attributes:
        puzzle: number of the puzzle.
        number: number of the rollout; rollout 0 solves the puzzle as it is.
        symmetry: the change of the puzzle; undo it in the answers.
        result: the engine's.
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
    """Run every puzzle ``rollouts`` times, in order; rollout 0 solves the puzzle as it is.

    Args:
        engine: runs a model of ``task``.
        task: its symmetries change the puzzles.
        puzzles: the puzzles.
        rollouts: number of attempts at each puzzle.
        augment: solve variants of the puzzles in all rollouts but the first.
        noise: standard deviation of noise that is added to the initial states (theirs is 1), in all rollouts but the
            first.
        seed: seed of variants and noise. Rollout r of puzzle i depends only on (seed, i, r).
        trace: keep the answers after each segment.

    Raises:
        InputError: a number is invalid, a puzzle does not fit, or some rollouts would be the same.
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

    def variants() -> Iterator[tuple[int, int, Symmetry, Puzzle]]:
        for index, puzzle in enumerate(puzzles):
            for number in range(rollouts):
                rng = np.random.default_rng((seed, index, number))
                change = symmetry(task, number if augment else 0, rng)
                inputs = change.apply(np.asarray(puzzle.inputs))
                variant = Puzzle(inputs, puzzle.identifier, noise if number else 0.0, int(rng.integers(2**62)))
                yield index, number, change, variant

    to_report, to_solve = tee(variants())
    results = engine.solve((variant for *_, variant in to_solve), trace=trace)
    for result, (index, number, change, _) in zip(results, to_report):
        if result.error is not None:
            raise result.error
        yield Rollout(index, number, change, result)

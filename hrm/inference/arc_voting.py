"""ARC answers: every variant of a task votes for an output grid of each test input.

An answer is cropped, its augmentation is undone, and equal grids are counted. The grids of a test input are ordered by
votes, then by mean sigmoid(q_halt), highest first, as published.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from hrm.data.arc import SIDE, Arc, boards_of, original, read_task, sizes
from hrm.data.format import PuzzleDataset
from hrm.errors import InputError
from hrm.files import read_json

_VOTED_AT_ONCE = 4096
PASS_KS = (1, 2, 5, 10, 100, 1000)

_original: Callable[[str], tuple[str, Callable[[np.ndarray], np.ndarray]]] = lru_cache(maxsize=4096)(original)


def grid_digest(grid: np.ndarray) -> bytes:
    """A key of a ``[rows, columns]`` uint8 grid, both at most 255: equal for equal grids only."""
    return blake2b(grid.tobytes(), digest_size=16, person=bytes(grid.shape)).digest()


class ArcVotes:
    """The votes on the test inputs of ``tasks``, counted batch by batch.

    Memory grows with the number of distinct grids, not of predictions. An instance can be pickled, sent to another
    process and added there with :meth:`merge`.

    Args:
        tasks: the content of ``test_puzzles.json``, ``{name: {"train": [...], "test": [{"input": grid, "output":
            grid}]}}``; the output of a test may be missing.
        side: rows and columns of the boards.

    Raises:
        InputError: a value of ``tasks`` is not a task.
    """

    def __init__(self, tasks: Mapping[str, Any], side: int = SIDE):
        if not isinstance(tasks, Mapping):
            raise InputError("test_puzzles.json: expected an object of tasks by name; build the data set again")
        read = [read_task(name, "", value, f"test_puzzles.json: task {name}") for name, value in tasks.items()]
        self.tests = {
            task.name: [(grid_digest(grid), None if out is None else grid_digest(out)) for grid, out in task.test]
            for task in read
        }
        self.seq_len = side * side
        self.unmatched = 0
        """Predictions for inputs that are not test inputs of a task; they do not vote."""
        self._votes: dict[tuple[str, bytes], dict[bytes, list[float]]] = {  # per grid: votes, sum of sigmoid(q_halt)
            (name, test): {} for name, tests in self.tests.items() for test, _ in tests
        }
        self._grids: dict[bytes, np.ndarray] = {}

    def add(self, names: Sequence[str], inputs: np.ndarray, predictions: np.ndarray, q_halt_logits: np.ndarray) -> None:
        """Count a batch of predictions.

        Args:
            names: ``[n]``, the puzzles' names in ``identifiers.json``: those of (augmented) tasks.
            inputs, predictions: ``[n, seq_len]`` tokens.
            q_halt_logits: ``[n]``.

        Raises:
            InputError: a name is malformed.
            ValueError: the shapes do not fit.
        """
        inputs, predictions = np.asarray(inputs), np.asarray(predictions)
        logits = np.asarray(q_halt_logits, np.float64)
        expected = (len(names), self.seq_len)
        if inputs.shape != expected or predictions.shape != expected or logits.shape != expected[:1]:
            raise ValueError(
                f"ArcVotes.add: inputs {list(inputs.shape)}, predictions {list(predictions.shape)} and q_halt_logits "
                f"{list(logits.shape)} for {len(names)} names, expected {list(expected)} twice and {list(expected[:1])}"
            )
        logits = np.where(np.isnan(logits), -np.inf, logits)  # NaN has no order
        halt = np.exp(-np.logaddexp(0, -logits))  # sigmoid
        for name, question, answer, q in zip(names, _grids(inputs), _grids(predictions), halt.tolist(), strict=True):
            task, undo = _original(name)
            votes = self._votes.get((task, grid_digest(undo(question))))
            if votes is None:
                self.unmatched += 1
                continue
            grid = undo(answer)
            digest = grid_digest(grid)
            if digest not in self._grids:
                self._grids[digest] = np.ascontiguousarray(grid)
            tally = votes.setdefault(digest, [0, 0.0])
            tally[0] += 1
            tally[1] += q

    def merge(self, other: "ArcVotes") -> None:
        """Add votes that another process counted on the same tasks."""
        if self.tests != other.tests:
            raise ValueError("ArcVotes.merge: the two count votes on different tasks")
        for key, votes in other._votes.items():
            for digest, (count, q) in votes.items():
                tally = self._votes[key].setdefault(digest, [0, 0.0])
                tally[0] += count
                tally[1] += q
        self._grids |= other._grids
        self.unmatched += other.unmatched

    def _order(self, task: str, test: bytes) -> list[bytes]:
        votes = self._votes[task, test]
        # sorted() is stable: ties stay in the order of their first votes
        return sorted(votes, key=lambda digest: (votes[digest][0], votes[digest][1] / votes[digest][0]), reverse=True)

    def ranked(self, k: int | None = None) -> dict[str, list[list[np.ndarray]]]:
        """For each task and test input the first ``k`` answers (all if None), best first; there may be none."""
        return {
            task: [[self._grids[digest] for digest in self._order(task, test)[:k]] for test, _ in tests]
            for task, tests in self.tests.items()
        }

    def pass_at(self, ks: Sequence[int] = PASS_KS) -> dict[int, float]:
        """For each K the share of a task's tests whose output is among the first K answers, a mean over tasks.

        Tests whose output is unknown are left out; if all are, the result is empty.
        """
        ranks: list[list[float]] = []  # for each task and test, the rank of the output, from 0
        for task, tests in self.tests.items():
            ranks_of_task = []
            for test, output in tests:
                if output is not None:
                    order = self._order(task, test)
                    ranks_of_task.append(order.index(output) if output in order else float("inf"))
            if ranks_of_task:
                ranks.append(ranks_of_task)
        if not ranks:
            return {}
        return {k: float(np.mean([np.mean(np.less(of_task, k)) for of_task in ranks])) for k in ks}

    def submission(self, k: int = 2) -> dict[str, list[dict[str, list[list[int]]]]]:
        """The first ``k`` answers in Kaggle's format, ``{task: [{"attempt_1": grid, "attempt_2": grid}, ...]}``.

        If there are fewer answers, the first is repeated. Kaggle requires attempts for every test input: without an
        answer, or with an empty grid, the attempt is ``[[0]]``.
        """

        def attempts(answers: list[np.ndarray]) -> dict[str, list[list[int]]]:
            grids = [answer.tolist() if answer.size else [[0]] for answer in answers] or [[[0]]]
            return {f"attempt_{i + 1}": grids[i] if i < len(grids) else grids[0] for i in range(k)}

        return {task: [attempts(answers) for answers in tests] for task, tests in self.ranked(k).items()}


def votes_on(dataset: PuzzleDataset) -> ArcVotes | None:
    """Votes on the tasks of an ARC test split; None for any other split."""
    file = dataset.file("test_puzzles.json")
    arc = Arc.from_shape(dataset.metadata.vocab_size, dataset.metadata.seq_len)
    if arc is None or dataset.split != "test" or not file.is_file():
        return None
    return ArcVotes(read_json(file), arc.side)


def count_votes(votes: ArcVotes, names: list[str], arrays: dict[str, np.ndarray]) -> None:
    """Count the predictions of a split, in the order of its examples.

    Args:
        votes: on the split's tasks.
        names: of its puzzle identifiers.
        arrays: of :meth:`hrm.inference.predictions.Predictions.arrays`.

    Raises:
        InputError: a puzzle identifier has no name.
    """
    highest = int(arrays["puzzle_identifiers"].max(initial=0))
    if not isinstance(names, list) or highest >= len(names):
        known = f"{len(names)} names" if isinstance(names, list) else "no list of names"
        raise InputError(
            f"identifiers.json has {known} and the examples the puzzle identifier {highest}, so their tasks are not "
            "known and cannot be voted on; build the data set again"
        )
    names_of_rows = [names[identifier] for identifier in arrays["puzzle_identifiers"]]
    for start in range(0, len(names_of_rows), _VOTED_AT_ONCE):
        rows = slice(start, start + _VOTED_AT_ONCE)
        votes.add(names_of_rows[rows], arrays["inputs"][rows], arrays["predictions"][rows], arrays["q_halt"][rows])


def _grids(tokens: np.ndarray) -> list[np.ndarray]:
    """The grids of ``[n, side * side]`` tokens."""
    boards = (boards_of(tokens) - 2).astype(np.uint8)
    return [board[:r, :c] for board, r, c in zip(boards, *(size.tolist() for size in sizes(tokens)), strict=True)]

"""Batches of a data set: random for training, in order for evaluation. Each process gets its share.

A batch is a dictionary of int32 tensors on the CPU: ``inputs`` and ``labels`` ``[rows, seq_len]``,
``puzzle_identifiers`` ``[rows]``. Labels equal to ``ignore_label_id`` are -100.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypedDict

import numpy as np
import torch

from hrm.data.format import IGNORE_LABEL, PuzzleDataset
from hrm.errors import InputError

Batch = dict[str, torch.Tensor]


class Drawn(NamedTuple):
    """Examples that a sampler has drawn.

    Attributes:
        examples: ``[n]`` int64, their numbers across all sets of the data set.
        identifiers: ``[n]`` int32, the identifiers of their puzzles.
    """

    examples: np.ndarray
    identifiers: np.ndarray

    def rows(self, which: slice | np.ndarray) -> "Drawn":
        """Some of the examples."""
        return Drawn(self.examples[which], self.identifiers[which])


class SamplerState(TypedDict):
    """The position of a sampler: the epoch, and how many groups of the epoch it has drawn."""

    epoch: int
    position: int


class _Examples:
    """The sets of a data set as one: examples and puzzles are numbered across all sets, in order."""

    def __init__(self, dataset: PuzzleDataset):
        self.dataset = dataset
        sets = dataset.sets
        self.offsets = np.cumsum([0] + [puzzle_set.num_examples for puzzle_set in sets])  # first example of each set
        self.puzzle_starts = np.concatenate(
            [puzzle_set.puzzle_indices[:-1] + offset for puzzle_set, offset in zip(sets, self.offsets)]
        )
        self.identifiers = np.concatenate([puzzle_set.puzzle_identifiers.astype(np.int32) for puzzle_set in sets])

    def batch(self, drawn: Drawn, rows: int) -> Batch:
        """The examples with their puzzles' identifiers, padded to ``rows``."""
        examples, identifiers = drawn
        metadata = self.dataset.metadata
        inputs = np.full(
            (rows, metadata.seq_len), metadata.pad_id
        )  # int64: int32 could turn a large value into a token
        labels = np.full((rows, metadata.seq_len), IGNORE_LABEL)
        puzzle_identifiers = np.full(rows, metadata.blank_identifier_id, np.int32)
        puzzle_identifiers[: len(examples)] = identifiers
        which = np.searchsorted(self.offsets, examples, side="right") - 1
        for index, puzzle_set in enumerate(self.dataset.sets):
            at = np.flatnonzero(which == index)
            if at.size:
                inputs[at] = puzzle_set.inputs[examples[at] - self.offsets[index]]
                labels[at] = puzzle_set.labels[examples[at] - self.offsets[index]]
        if metadata.ignore_label_id is not None:
            labels[labels == metadata.ignore_label_id] = IGNORE_LABEL
        # On a GPU, a token out of range would be a device-side assertion without a readable message.
        for name, tokens in (("inputs", inputs), ("labels", labels)):
            wrong = (tokens < 0) | (tokens >= metadata.vocab_size)
            if name == "labels":
                wrong &= tokens != IGNORE_LABEL
            if wrong.any():
                raise InputError(
                    f"{self.dataset.folder / self.dataset.split}: the {name} hold token {tokens[wrong][0]}, expected 0 "
                    f"to {metadata.vocab_size - 1} (vocab_size in dataset.json); build the data set again"
                )
        return {
            "inputs": torch.from_numpy(inputs.astype(np.int32)),
            "labels": torch.from_numpy(labels.astype(np.int32)),
            "puzzle_identifiers": torch.from_numpy(puzzle_identifiers),
        }


def rows_per_rank(batch_size: int, world_size: int) -> int:
    """Rows of each process, ``batch_size / world_size``.

    Raises:
        InputError: ``batch_size`` is not a multiple of ``world_size``.
    """
    if batch_size % world_size:
        below, above = batch_size // world_size * world_size, -(-batch_size // world_size) * world_size
        raise InputError(
            f"the global batch size {batch_size} does not divide among {world_size} processes; "
            f"give {f'{below} or ' if below else ''}{above}, or another number of processes"
        )
    return batch_size // world_size


class TrainingSampler:
    """Endless random batches: an epoch visits each group once, in random order, as one random puzzle of the group.

    All examples of the puzzle go into the batch. Of the puzzle that fills the batch, a random subset is taken and the
    rest is dropped, as in HRM's published sampler. A batch may span two epochs.

    The draw depends only on the seed, the epoch and the position in the epoch, so :attr:`state` is two numbers. Every
    process draws the same global batch and reads only its rows: rank r has ``[r * rows, (r + 1) * rows)``. Groups and
    puzzles without examples are left out.

    Raises:
        InputError: ``batch_size`` does not divide among the processes, or a token is out of range.
    """

    def __init__(self, dataset: PuzzleDataset, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1):
        rows = rows_per_rank(batch_size, world_size)
        self._mine = slice(rank * rows, (rank + 1) * rows)
        self._batch_size, self._seed = batch_size, seed
        self._examples = _Examples(dataset)
        sizes = np.concatenate([np.diff(puzzle_set.puzzle_indices) for puzzle_set in dataset.sets])
        groups = np.concatenate([np.diff(puzzle_set.group_indices) for puzzle_set in dataset.sets])
        filled = sizes > 0
        self._starts = self._examples.puzzle_starts[filled]
        self._sizes = sizes[filled]
        self._identifiers = self._examples.identifiers[filled]
        group_indices = np.concatenate([[0], np.cumsum(filled)])[np.concatenate([[0], np.cumsum(groups)])]
        nonempty = np.diff(group_indices) > 0
        self._group_starts, self._group_ends = group_indices[:-1][nonempty], group_indices[1:][nonempty]
        self._planned = -1
        self.state = {"epoch": 0, "position": 0}

    @property
    def num_groups(self) -> int:
        """Number of groups with examples, which is the number of puzzles in one epoch."""
        return len(self._group_starts)

    @property
    def state(self) -> SamplerState:
        """The position of the next batch; assign a state to continue from there."""
        return {"epoch": self._epoch, "position": self._position}

    @state.setter
    def state(self, state: SamplerState) -> None:
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= self.num_groups:
            raise InputError(
                f"sampler position {position} of epoch {epoch} does not exist among {self.num_groups} groups; "
                "train on the data set that the run started with"
            )
        self._epoch, self._position = epoch, position

    def _random(self, position: int | None = None) -> np.random.Generator:
        # One Philox key per epoch; the counter's top word separates the order's stream from the streams of the subsets.
        counter = [0, 0, 0, 0 if position is None else position + 1]
        return np.random.Generator(np.random.Philox(key=[self._seed, self._epoch], counter=counter))

    def _plan(self) -> np.ndarray:
        """The puzzles of the current epoch, in the order of their visits."""
        if self._planned != self._epoch:
            random = self._random()
            puzzles = random.integers(self._group_starts, self._group_ends)
            self._order = puzzles[random.permutation(self.num_groups)]
            self._planned = self._epoch
        return self._order

    def next(self) -> Batch:
        """This process's rows of the next batch."""
        return self.read(self.draw(self._batch_size).rows(self._mine))

    def read(self, drawn: Drawn) -> Batch:
        """The examples as a batch."""
        return self._examples.batch(drawn, len(drawn.examples))

    def draw(self, rows: int) -> Drawn:
        """The examples of the next batch of ``rows`` rows, of all processes together."""
        examples = np.empty(rows, np.int64)
        identifiers = np.empty(rows, np.int32)
        filled = 0
        while filled < rows:
            if self._position == self.num_groups:
                self._epoch, self._position = self._epoch + 1, 0
            free = rows - filled
            puzzles = self._plan()[self._position : self._position + free]
            sizes, starts = self._sizes[puzzles], self._starts[puzzles]
            ends = np.cumsum(sizes)
            count = min(int(np.searchsorted(ends, free)) + 1, len(puzzles))
            puzzles, sizes, starts, ends = puzzles[:count], sizes[:count], starts[:count], ends[:count]
            chosen = np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)
            if len(chosen) > free:
                whole = int(ends[-1] - sizes[-1])
                subset = self._random(self._position + count - 1).choice(int(sizes[-1]), free - whole, replace=False)
                chosen = np.concatenate([chosen[:whole], starts[-1] + subset])
            examples[filled : filled + len(chosen)] = chosen
            identifiers[filled : filled + len(chosen)] = np.repeat(self._identifiers[puzzles], sizes)[: len(chosen)]
            filled += len(chosen)
            self._position += count
        return Drawn(examples, identifiers)


def evaluation_batches(
    dataset: PuzzleDataset, batch_size: int, rank: int = 0, world_size: int = 1, max_examples: int | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, in order: pairs of example numbers and a batch.

    Examples are numbered across all sets, in the order of ``dataset.sets``. A global batch is ``batch_size``
    consecutive examples; rank r has ``[r * rows, (r + 1) * rows)`` of them, ``rows = batch_size / world_size``. Every
    process gets the same number of batches, of ``rows`` rows each. Rows beyond the examples are padding: pad_id, labels
    -100, blank_identifier_id.

    Args:
        dataset: the split.
        batch_size: rows of all processes together.
        rank, world_size: this process, and the number of processes.
        max_examples: use only this many examples, from the start.

    Yields:
        numbers: ``[n]`` int64, n at most ``rows`` and perhaps 0.
        batch: ``rows`` rows, of which the first n are these examples.

    Raises:
        InputError: ``batch_size`` does not divide among the processes, or a token is out of range.
    """
    rows = rows_per_rank(batch_size, world_size)
    examples = _Examples(dataset)
    total = dataset.num_examples if max_examples is None else min(max_examples, dataset.num_examples)
    for first in range(0, total, batch_size):
        numbers = np.arange(first + rank * rows, min(first + (rank + 1) * rows, total))
        puzzles = np.searchsorted(examples.puzzle_starts, numbers, side="right") - 1
        yield numbers, examples.batch(Drawn(numbers, examples.identifiers[puzzles]), rows)

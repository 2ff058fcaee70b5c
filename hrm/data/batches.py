"""Batches of a data set: drawn at random for training, in order for evaluation, each process its share.

A batch is a dictionary of int32 tensors on the CPU: ``inputs`` and ``labels`` ``[rows, seq_len]``,
``puzzle_identifiers`` ``[rows]``. Labels equal to ``ignore_label_id`` are -100.
"""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
import torch

from hrm.data.format import IGNORE_LABEL, PuzzleDataset
from hrm.errors import InputError

Batch = dict[str, torch.Tensor]


class SamplerState(TypedDict):
    """Where a sampler stands: the epoch, and how many of its groups it has drawn."""

    epoch: int
    position: int


class _Examples:
    """The sets of a data set as one: examples and puzzles are numbered through all sets, in order."""

    def __init__(self, dataset: PuzzleDataset):
        self.dataset = dataset
        sets = dataset.sets
        self.offsets = np.cumsum([0] + [one.num_examples for one in sets])  # first example of each set
        self.puzzle_starts = np.concatenate(
            [one.puzzle_indices[:-1] + offset for one, offset in zip(sets, self.offsets)]
        )
        self.identifiers = np.concatenate([one.puzzle_identifiers.astype(np.int32) for one in sets])

    def batch(self, examples: np.ndarray, identifiers: np.ndarray, rows: int) -> Batch:
        """The ``examples`` (numbers) with their puzzles' ``identifiers``, padded to ``rows``."""
        metadata = self.dataset.metadata
        inputs = np.full((rows, metadata.seq_len), metadata.pad_id)  # int64: int32 could make a token of another
        labels = np.full((rows, metadata.seq_len), IGNORE_LABEL)
        puzzle_identifiers = np.full(rows, metadata.blank_identifier_id, np.int32)
        puzzle_identifiers[: len(examples)] = identifiers
        which = np.searchsorted(self.offsets, examples, side="right") - 1
        for index, one in enumerate(self.dataset.sets):
            at = np.flatnonzero(which == index)
            if at.size:
                inputs[at] = one.inputs[examples[at] - self.offsets[index]]
                labels[at] = one.labels[examples[at] - self.offsets[index]]
        if metadata.ignore_label_id is not None:
            labels[labels == metadata.ignore_label_id] = IGNORE_LABEL
        # A token out of range is a device-side assertion on a GPU, which nobody can read.
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
    """``batch_size / world_size``.

    Raises:
        InputError: it does not divide.
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

    All examples of the puzzle go into the batch; of the puzzle that fills it up, a random subset as large as the room
    left (the rest is dropped: HRM's published sampler does the same). Batches run on from one epoch into the next.

    What is drawn depends on the seed, the epoch and the position in it alone, so :attr:`state` is two numbers, and
    every process draws the same global batch and reads only its own rows: rank r has ``[r * rows, (r + 1) * rows)``.
    Groups and puzzles without examples are left out.

    Raises:
        InputError: ``batch_size`` does not divide among the processes; a token is out of range.
    """

    def __init__(self, dataset: PuzzleDataset, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1):
        rows = rows_per_rank(batch_size, world_size)
        self._mine = slice(rank * rows, (rank + 1) * rows)
        self._batch_size, self._seed = batch_size, seed
        self._examples = _Examples(dataset)
        sizes = np.concatenate([np.diff(one.puzzle_indices) for one in dataset.sets])
        groups = np.concatenate([np.diff(one.group_indices) for one in dataset.sets])
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
        """Groups that have examples: the puzzles of one epoch."""
        return len(self._group_starts)

    @property
    def state(self) -> SamplerState:
        """Where the next batch starts; set it to go on from there."""
        return {"epoch": self._epoch, "position": self._position}

    @state.setter
    def state(self, state: SamplerState) -> None:
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= self.num_groups:
            raise InputError(
                f"sampler position {position} of epoch {epoch} does not exist among {self.num_groups} groups; "
                "train on the data set that the run began with"
            )
        self._epoch, self._position = epoch, position

    def _random(self, position: int | None = None) -> np.random.Generator:
        # One Philox key an epoch; the counter's top word tells the plan's stream from those of the positions' subsets.
        counter = [0, 0, 0, 0 if position is None else position + 1]
        return np.random.Generator(np.random.Philox(key=[self._seed, self._epoch], counter=counter))

    def _plan(self) -> np.ndarray:
        """The puzzles of the current epoch, in the order they are visited."""
        if self._planned != self._epoch:
            random = self._random()
            puzzles = random.integers(self._group_starts, self._group_ends)
            self._order = puzzles[random.permutation(self.num_groups)]
            self._planned = self._epoch
        return self._order

    def next(self) -> Batch:
        """This process's rows of the next batch."""
        examples = np.empty(self._batch_size, np.int64)
        identifiers = np.empty(self._batch_size, np.int32)
        filled = 0
        while filled < self._batch_size:
            if self._position == self.num_groups:
                self._epoch, self._position = self._epoch + 1, 0
            room = self._batch_size - filled
            puzzles = self._plan()[self._position : self._position + room]
            sizes, starts = self._sizes[puzzles], self._starts[puzzles]
            ends = np.cumsum(sizes)
            count = min(int(np.searchsorted(ends, room)) + 1, len(puzzles))
            puzzles, sizes, starts, ends = puzzles[:count], sizes[:count], starts[:count], ends[:count]
            chosen = np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)
            if len(chosen) > room:
                whole = int(ends[-1] - sizes[-1])
                subset = self._random(self._position + count - 1).choice(int(sizes[-1]), room - whole, replace=False)
                chosen = np.concatenate([chosen[:whole], starts[-1] + subset])
            examples[filled : filled + len(chosen)] = chosen
            identifiers[filled : filled + len(chosen)] = np.repeat(self._identifiers[puzzles], sizes)[: len(chosen)]
            filled += len(chosen)
            self._position += count
        mine = self._mine
        return self._examples.batch(examples[mine], identifiers[mine], mine.stop - mine.start)


def evaluation_batches(
    dataset: PuzzleDataset, batch_size: int, rank: int = 0, world_size: int = 1, max_examples: int | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, in order: pairs of example numbers and a batch.

    Examples are numbered through all sets, in the order of ``dataset.sets``. A global batch is ``batch_size``
    consecutive examples; rank r has ``[r * rows, (r + 1) * rows)`` of them, ``rows = batch_size / world_size``. Every
    process gets equally many batches of ``rows`` rows each; rows beyond the examples (``len(numbers)``, which may be 0)
    are padding: pad_id, labels -100, blank_identifier_id.

    Args:
        dataset: the split.
        batch_size: rows of all processes together.
        rank, world_size: this process, and how many there are.
        max_examples: only this many from the start.

    Yields:
        numbers: ``[n <= rows]`` int64, and the batch.

    Raises:
        InputError: ``batch_size`` does not divide among the processes; a token is out of range.
    """
    rows = rows_per_rank(batch_size, world_size)
    examples = _Examples(dataset)
    total = dataset.num_examples if max_examples is None else min(max_examples, dataset.num_examples)
    for first in range(0, total, batch_size):
        numbers = np.arange(first + rank * rows, min(first + (rank + 1) * rows, total))
        puzzles = np.searchsorted(examples.puzzle_starts, numbers, side="right") - 1
        yield numbers, examples.batch(numbers, examples.identifiers[puzzles], rows)

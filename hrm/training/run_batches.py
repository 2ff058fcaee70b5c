"""The batches of a run: drawn from one data set or mixed from two, and changed by symmetries on the fly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hrm.data import task_of
from hrm.data.batches import Batch, Drawn, TrainingSampler
from hrm.data.format import PuzzleDataset
from hrm.data.puzzles import KnownPuzzles
from hrm.data.symmetries import Symmetries
from hrm.errors import InputError
from hrm.training.schedule import Moment, step_of

MixShare = float | Sequence[tuple[Moment, float]]
"""A share of the rows, 0 to 1; or moments of the training with the share at each, ascending, with lines in between."""
_OF_SYMMETRIES, _OF_SOURCES = 1, 2  # streams of random numbers beside those of TrainingSampler, which are 0


class Mixture:
    """A second data set, and the share of the rows that comes from it.

    Args:
        sampler: of the second data set.
        share: of the rows that come from it.
        total_steps: steps of the training.

    Raises:
        InputError: the moments are not ascending.
    """

    def __init__(self, sampler: TrainingSampler, share: MixShare, total_steps: int):
        self.sampler = sampler
        points = [(1, share)] if isinstance(share, float | int) else share
        self._steps = [step_of(moment, total_steps) for moment, _ in points]
        self._shares = [value for _, value in points]
        if self._steps != sorted(self._steps):
            raise InputError(f"mix_share: the moments are steps {self._steps}, expected them in ascending order")

    def share(self, step: int) -> float:
        """The share of step ``step``, counted from 1."""
        return float(np.interp(step, self._steps, self._shares))


@dataclass(frozen=True)
class Augmentation:
    """Symmetries that are applied on the fly.

    Attributes:
        draw: :meth:`hrm.data.task.PuzzleTask.symmetries` of the task.
        avoid: puzzles that no training puzzle may become, as those of the test split: the original takes their place.
    """

    draw: Callable[[int, np.random.Generator], Symmetries | None]
    avoid: KnownPuzzles

    @classmethod
    def of(cls, train: PuzzleDataset, avoid: PuzzleDataset | None) -> "Augmentation":
        """The symmetries of the task of ``train``.

        Args:
            train: the data set.
            avoid: a split whose puzzles are avoided.

        Raises:
            InputError: the task is not known, or has no symmetries.
        """
        task = task_of(train.metadata.vocab_size, train.metadata.seq_len, train.metadata.task)
        if task.symmetries(0, np.random.default_rng(0)) is None:
            raise InputError(
                f"augment: task {task.name} has no symmetries that can be applied on the fly; build the data set with "
                "augmentations, or define PuzzleTask.symmetries"
            )
        sets = avoid.sets if avoid is not None else ()
        inputs = [np.asarray(one.inputs) for one in sets] or [np.zeros((0, train.metadata.seq_len), np.uint8)]
        return cls(task.symmetries, KnownPuzzles(np.concatenate(inputs)))

    def apply(self, batch: Batch, rows: slice, global_rows: int, rng: np.random.Generator) -> None:
        """Change each row of ``batch``, in place, which are ``rows`` of a global batch of ``global_rows``."""
        symmetries = self.draw(global_rows, rng)
        assert symmetries is not None  # checked by `of`
        symmetries = symmetries.rows(rows)
        inputs, labels = batch["inputs"].numpy(), batch["labels"].numpy()
        changed = symmetries.apply(inputs)
        good = ~self.avoid.contains(changed)
        labels[good] = symmetries.apply_to_labels(labels)[good]
        inputs[good] = changed[good]


class RunBatches:
    """The batches of one process of a run.

    What a batch holds depends on the seed, the step and :attr:`state` only, and is drawn for the global batch, so a
    resumed run and any number of processes see the same.

    Args:
        sampler: of the run's data set.
        batch_size: rows of all processes together.
        rows: those of this process.
        seed: of the run.
        mixture: a second data set; its rows and those of the first are in random order.
        augmentation: applied to all rows.
    """

    def __init__(
        self,
        sampler: TrainingSampler,
        batch_size: int,
        rows: slice,
        seed: int,
        mixture: Mixture | None = None,
        augmentation: Augmentation | None = None,
    ):
        self._sampler, self._batch_size, self._rows, self._seed = sampler, batch_size, rows, seed
        self._mixture, self._augmentation = mixture, augmentation

    @property
    def state(self) -> dict[str, Any]:
        """The positions in the data sets, as JSON values; assign a state to continue from there."""
        state: dict[str, Any] = {**self._sampler.state}
        if self._mixture is not None:
            state["mix"] = {**self._mixture.sampler.state}
        return state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._sampler.state = {"epoch": state["epoch"], "position": state["position"]}
        if self._mixture is not None:
            self._mixture.sampler.state = state["mix"]

    def next(self, step: int) -> Batch:
        """The batch of step ``step``: tensors on the CPU, as :mod:`hrm.data.batches` describes them."""
        if self._mixture is None:
            batch = self._sampler.read(self._sampler.draw(self._batch_size).rows(self._rows))
        else:
            batch = self._mixed(self._mixture, step)
        if self._augmentation is not None:
            self._augmentation.apply(batch, self._rows, self._batch_size, self._random(step, _OF_SYMMETRIES))
        return batch

    def _mixed(self, mixture: Mixture, step: int) -> Batch:
        """A batch with the step's share of rows from the second data set, in random order.

        The number of rows is rounded at random, so that its mean is the share. The order matters because a row of a
        batch is used only where the row before has halted.
        """
        rng = self._random(step, _OF_SOURCES)
        second = int(mixture.share(step) * self._batch_size + rng.random())
        order = rng.permutation(self._batch_size)[self._rows]
        parts = self._sampler.draw(self._batch_size - second), mixture.sampler.draw(second)
        examples = Drawn(*(np.concatenate(columns) for columns in zip(*parts, strict=True))).rows(order)
        from_second = order >= self._batch_size - second
        batch: Batch = {}
        for sampler, mask in ((self._sampler, ~from_second), (mixture.sampler, from_second)):
            for name, values in sampler.read(examples.rows(np.flatnonzero(mask))).items():
                whole = batch.setdefault(name, values.new_empty((len(order), *values.shape[1:])))
                whole[torch.from_numpy(mask)] = values
        return batch

    def _random(self, step: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._seed, step], counter=[0, 0, stream, 0]))

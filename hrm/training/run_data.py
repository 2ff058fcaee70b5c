"""The data of a run, and the lengths that follow from it."""

from dataclasses import dataclass
from typing import Any

from hrm.data.batches import TrainingSampler
from hrm.data.fingerprint import fingerprint, names_fingerprint
from hrm.data.format import PuzzleDataset, open_dataset
from hrm.errors import InputError
from hrm.training.config import TrainConfig
from hrm.training.distributed import World
from hrm.training.run_batches import Augmentation, Mixture, RunBatches
from hrm.training.schedule import total_steps


@dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
        train: the split to train on.
        mixed: the split that is mixed in; None if there is none.
        test: the split to evaluate on; None if the run never evaluates.
        sampler: the position in ``train``.
        batches: draws the batches of this process.
        total_steps: number of steps in the configured epochs.
        eval_every: steps from one evaluation to the next; None never evaluates.
    """

    train: PuzzleDataset
    mixed: PuzzleDataset | None
    test: PuzzleDataset | None
    sampler: TrainingSampler
    batches: RunBatches
    total_steps: int
    eval_every: int | None

    @classmethod
    def open(cls, config: TrainConfig, world: World) -> "RunData":
        """Open the data folder of ``config``.

        Raises:
            InputError: the folder does not hold a data set, or the batch size does not divide among the processes.
        """
        train, interval = open_dataset(config.data, "train"), config.eval_interval
        has_test = (config.data / "test").is_dir()
        held_out = open_dataset(config.data, "test") if has_test and (interval or config.augment) else None
        test = held_out if interval else None
        sampler = TrainingSampler(train, config.global_batch_size, config.seed, world.rank, world.size)
        sizes = (sampler.num_groups, train.metadata.mean_puzzle_examples, config.global_batch_size)
        total = total_steps(config.epochs, *sizes)
        mixed, mixture = None, None
        if config.mix_data is not None:
            mixed = open_dataset(config.mix_data, "train")
            _check_same_kind(train, mixed)
            # another seed, so that the orders of the two data sets are independent
            seed = (config.seed + 2**62) % 2**63
            second = TrainingSampler(mixed, config.global_batch_size, seed, world.rank, world.size)
            mixture = Mixture(second, config.mix_share, total)
        batches = RunBatches(
            sampler,
            config.global_batch_size,
            world.own_rows(config.global_batch_size),
            config.seed,
            mixture,
            Augmentation.of(train, held_out) if config.augment else None,
        )
        eval_every = total_steps(interval, *sizes) if interval and test else None
        return cls(train, mixed, test, sampler, batches, total, eval_every)

    @property
    def epoch(self) -> float:
        """How many epochs the sampler has drawn."""
        state = self.sampler.state
        return state["epoch"] + state["position"] / self.sampler.num_groups

    def identity(self, identifiers: str | None) -> dict[str, Any]:
        """The JSON values by which a checkpoint recognises its data.

        Args:
            identifiers: ``model.identifiers``, the puzzle identifiers that the model knows.
        """
        metadata = self.train.metadata.model_dump(mode="json")
        counted = metadata | {"num_examples": self.train.num_examples}
        if self.mixed is not None:
            counted["mix_data"] = fingerprint(self.mixed)
        return counted | {PUZZLES: fingerprint(self.train), NAMES: identifiers}


PUZZLES, NAMES = "puzzles", "identifiers"
"""The fingerprints among the values of :meth:`RunData.identity`."""


def _check_same_kind(data: PuzzleDataset, mixed: PuzzleDataset) -> None:
    """Refuse to mix data sets of different tasks or puzzle identifiers."""
    for name in ("seq_len", "vocab_size", "num_puzzle_identifiers", "task"):
        one, other = (getattr(dataset.metadata, name) for dataset in (data, mixed))
        if one != other:
            raise InputError(f"mix_data {mixed.folder} has {name} {other}, and {data.folder} {one}; they do not mix")
    if data.metadata.num_puzzle_identifiers > 1 and names_fingerprint(data) != names_fingerprint(mixed):
        raise InputError(f"mix_data {mixed.folder} names other puzzle identifiers than {data.folder}; they do not mix")

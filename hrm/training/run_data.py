"""The data of a run, and the lengths that follow from it."""

from dataclasses import dataclass
from typing import Any

from hrm.data.batches import TrainingSampler
from hrm.data.fingerprint import fingerprint
from hrm.data.format import PuzzleDataset, open_dataset
from hrm.training.config import TrainConfig
from hrm.training.distributed import World
from hrm.training.schedule import total_steps


@dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
        train: the split to train on.
        test: the split to evaluate on; None if the run never evaluates.
        sampler: draws the batches of this process.
        total_steps: number of steps in the configured epochs.
        eval_every: steps from one evaluation to the next; None never evaluates.
    """

    train: PuzzleDataset
    test: PuzzleDataset | None
    sampler: TrainingSampler
    total_steps: int
    eval_every: int | None

    @classmethod
    def open(cls, config: TrainConfig, world: World) -> "RunData":
        """Open the data folder of ``config``.

        Raises:
            InputError: the folder does not hold a data set, or the batch size does not divide among the processes.
        """
        train, interval = open_dataset(config.data, "train"), config.eval_interval
        has_test = interval is not None and (config.data / "test").is_dir()
        test = open_dataset(config.data, "test") if has_test else None
        sampler = TrainingSampler(train, config.global_batch_size, config.seed, world.rank, world.size)
        sizes = (sampler.num_groups, train.metadata.mean_puzzle_examples, config.global_batch_size)
        eval_every = total_steps(interval, *sizes) if interval and test else None
        return cls(train, test, sampler, total_steps(config.epochs, *sizes), eval_every)

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
        return counted | {PUZZLES: fingerprint(self.train), NAMES: identifiers}


PUZZLES, NAMES = "puzzles", "identifiers"
"""The fingerprints among the values of :meth:`RunData.identity`."""

"""The labelled examples of a data set as puzzles for the engine."""

import numpy as np

from hrm.compatibility import check_fits
from hrm.data.batches import evaluation_batches
from hrm.data.format import IGNORE_LABEL, PuzzleDataset
from hrm.errors import InputError
from hrm.inference.engine import Puzzle
from hrm.model import HRM


class LabelledPuzzles:
    """Puzzles with their answers, in the order of the examples; examples without a label are left out.

    Args:
        model: the puzzles have to fit it.
        dataset: the examples.
        max_examples: look only at the first examples; None looks at all.
        most: stop at this number of puzzles; None takes all.

    Attributes:
        puzzles: for :meth:`hrm.Engine.solve`.
        labels: ``[count, seq_len]`` int32; -100 where any token is right.

    Raises:
        InputError: data set and model don't fit each other, a file is damaged, or no example has labels.
    """

    def __init__(
        self, model: HRM, dataset: PuzzleDataset, max_examples: int | None = None, most: int | None = None
    ) -> None:
        check_fits(model, dataset)
        self.puzzles: list[Puzzle] = []
        labels: list[np.ndarray] = []
        for numbers, batch in evaluation_batches(dataset, 1024, max_examples=max_examples):
            columns = (batch[name].numpy() for name in ("inputs", "labels", "puzzle_identifiers"))
            for _, inputs, answer, identifier in zip(numbers, *columns):  # the rest is padding
                if (answer != IGNORE_LABEL).any():
                    self.puzzles.append(Puzzle(inputs, int(identifier)))
                    labels.append(answer)
            if most is not None and len(labels) >= most:
                del self.puzzles[most:], labels[most:]
                break
        if not labels:
            raise InputError(f"{dataset.folder / dataset.split} has no labels to measure by; choose another split")
        self.labels = np.stack(labels)

    @property
    def count(self) -> int:
        """Number of puzzles."""
        return len(self.puzzles)

    def is_right(self, index: int, tokens: np.ndarray) -> bool:
        """Whether ``[seq_len]`` tokens are the answer to puzzle ``index`` at all labelled positions."""
        labels = self.labels[index]
        return bool(((tokens == labels) | (labels == IGNORE_LABEL)).all())

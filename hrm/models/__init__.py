"""Small trained models that come with the package: ``hrm.load("sudoku4")``, ``hrm solve sudoku4 "..."``, offline.

Each has a folder with the checkpoint as :func:`hrm.save` writes it, ``card.json`` (how it was made, and its accuracy),
and ``halting.json`` (of ``hrm calibrate``; ``hrm solve`` halts by it). ``python -m hrm.models`` makes one from a run.
"""

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hrm.files import read_json

CARD = "card.json"
_FOLDER = Path(__file__).parent


class Breadth(BaseModel):
    """What several trajectories of a puzzle reach, if the task's check, else the vote and q_halt choose the answer.

    Attributes:
        trajectories: most trajectories per puzzle; a verified answer ends the others.
        count: number of puzzles, the first of those of the card.
        exact_accuracy: share of puzzles solved.
        steps: mean segments per puzzle, of all its trajectories together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trajectories: int
    count: int
    exact_accuracy: float
    steps: float


class Longer(BaseModel):
    """What a single trajectory reaches that may take more segments than in training, and halts early.

    Attributes:
        segments: most segments per puzzle.
        exact_accuracy: share of puzzles solved.
        steps: mean segments per puzzle.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    segments: int
    exact_accuracy: float
    steps: float


class Accuracy(BaseModel):
    """What ``hrm eval`` measured on held-out puzzles.

    Attributes:
        puzzles: a description of the puzzles.
        data: the command that generates them, without ``--out``; they are its test split.
        count: number of puzzles.
        exact_accuracy: share of puzzles solved after ``steps`` segments, the published protocol.
        steps: segments per puzzle.
        early_exact_accuracy: share of puzzles solved if each halts by the calibrated threshold.
        early_steps: mean segments per puzzle then.
        longer: with more segments than in training; None where this was not measured.
        breadth: with several trajectories that halt early, each with the puzzle changed by a symmetry; None where this
            was not measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    puzzles: str
    data: str
    count: int
    exact_accuracy: float
    steps: int
    early_exact_accuracy: float
    early_steps: float
    longer: Longer | None = None
    breadth: Breadth | None = None

    def interval(self, share: float) -> tuple[float, float]:
        """The 95 % interval (Wilson's) of a share of these puzzles."""
        n, z = self.count, 1.96
        middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
        return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


class Card(BaseModel):
    """Description of a shipped model.

    Attributes:
        name: the name that loads it, in place of a path.
        puzzles: a description of the puzzles it solves.
        example: a held-out puzzle.
        recipe: its recipe (:func:`hrm.training.recipes.recipes`).
        data: the command that generates its training data, without ``--out``; for a recipe with several stages, the
            data of the last one.
        training_steps: steps of all stages of its training.
        batch_size: rows per step.
        parameters: number of parameters.
        calibration: the command that generates the puzzles of ``halting.json``, which are not those of ``accuracy``.
        accuracy: on puzzles like those of its training, and on harder ones if they were measured.
        made_with: versions, device and date.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    puzzles: str
    example: str
    recipe: str
    data: str
    training_steps: int
    batch_size: int
    parameters: int
    calibration: str
    accuracy: tuple[Accuracy, ...]
    made_with: dict[str, str]

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        return _FOLDER / self.name

    @property
    def size(self) -> int:
        """Size of the weights, in bytes."""
        return (self.folder / "model.safetensors").stat().st_size


def names() -> list[str]:
    """The names of the shipped models."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{CARD}"))


def folder(name: str) -> Path | None:
    """The checkpoint folder of the shipped model ``name``; None if there is no such model."""
    return _FOLDER / name if name in names() else None


def cards() -> list[Card]:
    """The cards of the shipped models, by name."""
    return [Card.model_validate(read_json(_FOLDER / name / CARD)) for name in names()]

"""Small trained models that come with the package: ``hrm.load("sudoku4")``, ``hrm solve sudoku4 "..."``, offline.

A folder each: the checkpoint as :func:`hrm.save` writes it; ``card.json``, how it was made and what it reaches; and
``halting.json`` of ``hrm calibrate``, for ``--halt calibrated``. ``python -m hrm.models`` makes one from a run.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hrm.files import read_json

CARD = "card.json"
_HERE = Path(__file__).parent


class Accuracy(BaseModel):
    """What ``hrm eval`` measured on held-out puzzles.

    Attributes:
        puzzles: which ones, in words.
        data: the command that makes them, without ``--out``; they are its test split.
        count: how many.
        exact_accuracy: answered all right after ``steps`` segments, the published protocol.
        steps: segments.
        early_exact_accuracy, early_steps: where each puzzle halts by the calibrated threshold, and mean segments then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    puzzles: str
    data: str
    count: int
    exact_accuracy: float
    steps: int
    early_exact_accuracy: float
    early_steps: float


class Card(BaseModel):
    """What a shipped model is.

    Attributes:
        name: loads it, like a path.
        puzzles: what it solves, in words.
        example: a held-out puzzle.
        recipe: of :func:`hrm.training.config.recipes`.
        data: the command that makes its training data, without ``--out``; of the last stage, where the recipe says that
            there are several.
        training_steps, batch_size: of the training, all stages.
        parameters: of the model.
        calibration: the command that makes the puzzles of ``halting.json``, others than those measured on.
        accuracy: on puzzles like those of its training, and perhaps on harder ones.
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
        """Where the checkpoint lies."""
        return _HERE / self.name

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return (self.folder / "model.safetensors").stat().st_size


def names() -> list[str]:
    """The models that come with the package."""
    return sorted(path.parent.name for path in _HERE.glob(f"*/{CARD}"))


def folder(name: str) -> Path | None:
    """The checkpoint of a shipped model; None where ``name`` is none."""
    return _HERE / name if name in names() else None


def cards() -> list[Card]:
    """What there is, by name."""
    return [Card.model_validate(read_json(_HERE / name / CARD)) for name in names()]

"""Models on disk: save and load them, published checkpoints included."""

from hrm.weights.checkpoint import PUZZLE_EMB, PUZZLE_EMB_FILE, STATE_FILE, Weights
from hrm.weights.loading import from_published, load, read_extra
from hrm.weights.puzzle_embedding import PuzzleEmb
from hrm.weights.saving import save, write_model
from hrm.weights.tensor_files import write_tensors

__all__ = [
    "PUZZLE_EMB",
    "PUZZLE_EMB_FILE",
    "STATE_FILE",
    "PuzzleEmb",
    "Weights",
    "from_published",
    "load",
    "read_extra",
    "save",
    "write_model",
    "write_tensors",
]

"""The model's answer to every example of a split, collected over batches and processes."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hrm.data.format import PuzzleDataset
from hrm.files import written_beside
from hrm.model import HRM


class Predictions:
    """Answers by example number.

    Args:
        model: whose answers they are.
        total: number of examples.
    """

    def __init__(self, model: HRM, total: int) -> None:
        config = model.config
        dtype = torch.uint8 if config.vocab_size <= 256 else torch.int32
        self._predictions = torch.zeros(total, config.seq_len, dtype=dtype, device="cpu")
        self._q_halt = torch.zeros(total, dtype=torch.float32, device="cpu")
        self._early_steps = torch.zeros(total, dtype=torch.int32, device="cpu")

    def set(self, numbers: np.ndarray, tokens: torch.Tensor, q_halt: torch.Tensor, steps: torch.Tensor) -> None:
        """Store the answers to examples ``numbers``; the tensors may have more rows, of padding."""
        rows = torch.from_numpy(numbers)
        for stored, values in ((self._predictions, tokens), (self._q_halt, q_halt), (self._early_steps, steps)):
            stored[rows] = values[: len(rows)].to(stored)

    def add_other_processes(self, device: torch.device) -> None:
        """Add the answers of the other processes, if there are any; each must call this."""
        if dist.is_initialized():
            for name in ("_predictions", "_q_halt", "_early_steps"):
                values = getattr(self, name).to(device)
                dist.all_reduce(values)  # each row is 0 in all processes but one
                setattr(self, name, values.cpu())

    def arrays(self, dataset: PuzzleDataset) -> dict[str, np.ndarray]:
        """The answers with their examples, as ``predictions.npz`` stores them."""
        total, sets = len(self._q_halt), dataset.sets
        identifiers = [np.repeat(one.puzzle_identifiers, np.diff(one.puzzle_indices)) for one in sets]
        return {
            "inputs": np.concatenate([one.inputs for one in sets])[:total],
            "labels": np.concatenate([one.labels for one in sets])[:total],
            "puzzle_identifiers": np.concatenate(identifiers)[:total],
            "predictions": self._predictions.numpy(),
            "q_halt": self._q_halt.numpy(),
            "early_steps": self._early_steps.numpy(),
        }


def save_predictions(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Write ``predictions.npz``."""
    with written_beside(folder / "predictions.npz") as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its other keyword is not among them

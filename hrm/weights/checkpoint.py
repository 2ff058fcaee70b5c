"""What a checkpoint holds, and the names of its files."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from hrm.config import ModelConfig

Weights = Literal["model", "ema", "auto"]
"""The weights of a training checkpoint to load: the trained ones, the averaged ones, or the averaged ones if any."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
PUZZLE_EMB_FILE = "puzzle_emb.safetensors"
"""The puzzle embedding of a run whose processes divide its rows; the other weights are in their own file."""
STATE_FILE = "state.json"
"""What else a training run needs to resume, with the checksum of every file."""
PUZZLE_EMB = "inner.puzzle_emb.weights"
"""The puzzle embedding's name in a state dict."""
FILES, IDENTIFIERS = "files", "identifiers"  # keys of config.json; the first also of state.json


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        config_type: the family's configuration.
        state: tensors under the published names.
        values: the configuration's values.
        identifiers: fingerprint of the puzzle identifiers that the model knows; None if unknown.
    """

    config_type: type[ModelConfig]
    state: dict[str, torch.Tensor]
    values: dict[str, Any]
    identifiers: str | None = None

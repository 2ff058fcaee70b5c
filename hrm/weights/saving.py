"""Write models to disk."""

import json
from pathlib import Path
from typing import Any

from hrm.errors import InputError
from hrm.files import checksum, folder_written_beside
from hrm.model import HRM
from hrm.weights.checkpoint import CONFIG_FILE, FILES, IDENTIFIERS, WEIGHTS_FILE
from hrm.weights.tensor_files import write_tensors
from hrm_kernels.sharded_embedding import ShardedEmbedding


def save(model: HRM, folder: Path | str, overwrite: bool = False, **extra: Any) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a new ``folder``, both or neither.

    ``config.json`` has the checksum of the weights, and which puzzle identifiers the model knows
    (``model.identifiers``).

    Args:
        model: the model; weights are stored in their dtype under the published names. Tied weights are stored as
            copies, and are no longer tied in the loaded model.
        folder: must be new or empty unless ``overwrite``.
        overwrite: replace an existing folder.
        extra: more JSON values for ``config.json`` (such as ``task``).

    Raises:
        InputError: the folder exists, or the model's puzzle embedding is divided among processes.
        OSError: the folder cannot be written, for example on a full disk.
    """
    if isinstance(model.puzzle_emb, ShardedEmbedding):
        raise InputError("no process has all rows of a sharded puzzle embedding to save; load a checkpoint of its run")
    with folder_written_beside(folder, overwrite) as part:
        write_model(model, part, **extra)


def write_model(model: HRM, folder: Path, **extra: Any) -> None:
    """Write the files of :func:`save` into an existing folder."""
    file = folder / WEIGHTS_FILE
    write_tensors(file, model.state_dict())
    config: dict[str, Any] = {"family": model.config.family, "model": model.config.model_dump()}
    if model.identifiers is not None:
        config[IDENTIFIERS] = model.identifiers
    config |= extra | {FILES: {file.name: checksum(file)}}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

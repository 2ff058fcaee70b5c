"""Checkpoints of a training run: ``<run>/checkpoints/step_<8 digits>/``. An incomplete one never gets that name.

A checkpoint is a folder that :func:`hrm.load` reads: ``model.safetensors``, ``config.json``, ``ema.safetensors``, and
``puzzle_emb.safetensors`` if the rows of the puzzle embedding are divided among processes. Further safetensors files
and ``state.json`` hold the rest of the training state. ``state.json`` has the size and CRC-32 of every file, and the
CRC-32 of its own values.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from hrm.errors import InputError
from hrm.files import checksum, folder_written_beside, read_json, require_unchanged, write_json
from hrm.locate import checkpoint_path, checkpoints
from hrm.model import HRM
from hrm.training.distributed import World
from hrm.weights import PUZZLE_EMB, PUZZLE_EMB_FILE, STATE_FILE, write_model, write_tensors
from hrm_kernels.sharded_embedding import ShardedEmbedding

_TABLE_PART = f".{PUZZLE_EMB_FILE}.part"
_ROWS_AT_ONCE = 1 << 14  # copied from a GPU at once: 32 MiB of 512 columns


def write_checkpoint(
    run: Path,
    step: int,
    model: HRM,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    extra: dict[str, Any],
    table: Path | None = None,
) -> None:
    """Write the checkpoint of step ``step``.

    Args:
        run: the run's folder.
        step: names the checkpoint; an existing one of that step is replaced.
        model: written as by ``hrm.save``.
        tensors: by file (``carry`` becomes ``carry.safetensors``), then by name.
        state: JSON values for ``state.json``.
        extra: JSON values for ``config.json``.
        table: a file of :func:`write_table`, which is moved into the checkpoint.
    """
    path = checkpoint_path(run, step)
    with folder_written_beside(path, overwrite=True) as part:
        write_model(model, part, **extra)
        for file, named in tensors.items():
            write_tensors(part / f"{file}.safetensors", named)
        if table is not None:
            table.replace(part / PUZZLE_EMB_FILE)
        values = {"step": step, **state, "files": {file.name: checksum(file) for file in sorted(part.iterdir())}}
        write_json(part / STATE_FILE, values | {"crc32": _crc32(values)})


def remove_old(run: Path, keep: int, best: Path | None) -> None:
    """Remove all checkpoints but the last ``keep`` and the ``best``."""
    for old in checkpoints(run)[:-keep]:
        if old == best:
            continue
        # Renamed first: a partly removed folder must not look like a checkpoint.
        gone = old.with_name(f".{old.name}.old")
        shutil.rmtree(gone, ignore_errors=True)
        old.rename(gone)
        shutil.rmtree(gone)


def write_table(run: Path, embedding: ShardedEmbedding, world: World) -> Path:
    """Write the rows of all processes into one safetensors file. Every process calls this and writes its rows."""
    path, columns = run / "checkpoints" / _TABLE_PART, embedding.weights.shape[1]
    row_bytes = 4 * columns
    offsets = [0, embedding.num_embeddings * row_bytes]
    entry = {"dtype": "F32", "shape": [embedding.num_embeddings, columns], "data_offsets": offsets}
    header = json.dumps({PUZZLE_EMB: entry}).encode()
    header += b" " * (-len(header) % 8)  # so that the data, after 8 bytes of length and the header, are aligned
    if world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + offsets[1])
    world.barrier()
    with path.open("r+b") as file:
        file.seek(8 + len(header) + embedding.first_row * row_bytes)
        for rows in embedding.weights.split(_ROWS_AT_ONCE):
            file.write(memoryview(rows.cpu().numpy()).cast("B"))
        file.flush()
        os.fsync(file.fileno())
    world.barrier()
    return path


def remove_leftovers(run: Path) -> None:
    """Remove the files of a run that was killed while it wrote or removed a checkpoint."""
    (run / "checkpoints" / _TABLE_PART).unlink(missing_ok=True)
    for path in (run / "checkpoints").glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been checked.

    Attributes:
        path: its folder.
        state: ``state.json``.
        config: ``config.json``.
    """

    path: Path
    state: dict[str, Any]
    config: dict[str, Any]

    def tensors(self, file: str, rows: slice | None = None) -> dict[str, Tensor]:
        """The tensors of ``<file>.safetensors`` without the puzzle embedding, on the CPU; of each only ``rows``."""
        with safe_open(self.path / f"{file}.safetensors", framework="pt") as opened:
            names = [name for name in opened.keys() if name != PUZZLE_EMB]  # noqa: SIM118
            if rows is None:
                return {name: opened.get_tensor(name) for name in names}
            return {name: opened.get_slice(name)[rows] for name in names}

    def table(self, rows: slice) -> Tensor:
        """These rows of the puzzle embedding, on the CPU; no other row is read."""
        separate = self.path / PUZZLE_EMB_FILE
        file = separate if separate.is_file() else self.path / "model.safetensors"
        with safe_open(file, framework="pt") as opened:
            return opened.get_slice(PUZZLE_EMB)[rows]


def open_newest(run: Path) -> Checkpoint:
    """The newest checkpoint of a run, with every file checked.

    Raises:
        InputError: there is no checkpoint, or the newest is damaged; the message names the one before.
    """
    existing = checkpoints(run)
    if not existing:
        raise InputError(f"{run} holds no checkpoint to resume from; leave out --resume, or choose another --out")
    newest = existing[-1]
    try:
        state = read_json(newest / STATE_FILE)
        if state.pop("crc32", _crc32(state)) != _crc32(state):  # absent in checkpoints of earlier versions
            raise InputError(f"the contents of {STATE_FILE} have changed since it was written")
        for name, expected in state["files"].items():
            require_unchanged(newest / name, expected)
        return Checkpoint(newest, state, read_json(newest / "config.json"))
    except (InputError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        reason = error if isinstance(error, InputError) else f"{STATE_FILE} does not hold a training state"
        way_out = (
            f"remove it to resume from the one before, {existing[-2].name}"
            if len(existing) > 1
            else "there is no earlier one: start again in another --out"
        )
        raise InputError(f"checkpoint {newest} is damaged ({reason}); {way_out}") from None


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of ``optimizer`` as ``<parameter number>.<name>``, without settings, which the configuration keeps."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, values in state.items() for name, tensor in values.items()}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _crc32(values: Mapping[str, Any]) -> int:
    """The CRC-32 of JSON values, independent of the layout of their file."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], what: str) -> None:
    """Copy each tensor of ``sources`` into the tensor of that name in ``targets``.

    Raises:
        InputError: the names or the shapes differ.
    """
    if different := targets.keys() ^ sources.keys():
        raise InputError(f"{what} does not fit this run: {sorted(different)[0]} is only in one of them")
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != sources[name].shape:
                raise InputError(
                    f"{what} does not fit this run: {name} is {list(sources[name].shape)}, "
                    f"expected {list(target.shape)}"
                )
            target.copy_(sources[name])

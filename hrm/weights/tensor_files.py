"""Files of tensors: safetensors, and the pickles of published checkpoints."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hrm.errors import InputError
from hrm.files import require_unchanged


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of any device as safetensors; each of those that share memory gets a copy.

    Raises:
        OSError: the file cannot be written.
    """
    on_cpu: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        on_cpu[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    try:
        save_file(on_cpu, file)
    except SafetensorError as error:  # it has the system's error only as text
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise OSError(None, f"cannot be written ({first_line(error)})", str(file)) from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(file)) from error


def read_tensors(file: Path, checksums: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file.

    Raises:
        InputError: the file is damaged.
    """
    require_undamaged(file, checksums)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or incomplete ({error}); use another checkpoint") from None


def require_undamaged(file: Path, checksums: Mapping[str, Any]) -> None:
    """Check a file against its checksum, if there is one.

    Raises:
        InputError: the file is missing or has changed.
    """
    try:
        if file.name in checksums:
            require_unchanged(file, checksums[file.name])
    except (OSError, InputError, LookupError, TypeError) as error:
        raise InputError(f"{file} is damaged or incomplete ({error}); use another checkpoint") from None


class NotRead:
    """Stands for an object in a pickle that is neither a tensor nor a plain value; it ignores what it is made of."""

    def __init__(self, *arguments: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, value: Any) -> None: ...
    def extend(self, values: Any) -> None: ...


def read_pickle(file: Path) -> dict[str, Any]:
    """The dict in a file of ``torch.save``: tensors, plain values, and :class:`NotRead` for anything else.

    No code in the file runs: PyTorch's restricted unpickler reads it, and a class that it does not know is replaced.

    Raises:
        InputError: the file is damaged, or holds something other than a dict.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of pickles that torch.save does not write
            state = _unpickle(file)
    except Exception as error:  # bytes that are not a pickle raise errors of any kind
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise refused(file) from None
        reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError | LookupError) else first_line(error)
        raise InputError(f"{file} is damaged, incomplete or not a checkpoint ({reason}); use another one") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{file} holds {type(state).__name__}, expected a state dict of tensors by name")
    return state


def _unpickle(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower() or not zipfile.is_zipfile(file):
            raise
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    with torch.serialization.safe_globals([(NotRead, name) for name in unknown]):
        return torch.load(file, map_location="cpu", weights_only=True)


def refused(file: Path) -> InputError:
    """The error for a pickle with an object where a tensor is expected."""
    return InputError(
        f"{file} is refused: its pickle holds more than tensors, and loading it could run code; if you trust it, save "
        "its state dict again with safetensors"
    )


def first_line(error: Exception) -> str:
    """The first sentence of an error."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]

"""Writing so that nothing is lost: a file or folder is complete under its name, or it is not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrm.errors import InputError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_beside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on leaving without an error it is fsynced and renamed to ``path``.

    A file of that name is replaced in one step; after an error it is as it was before.

    Raises:
        InputError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp makes files only their owner can read
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_written_beside(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on leaving without an error its files are fsynced and it is renamed.

    Raises:
        InputError: ``path`` is a file, or a folder that is not empty and ``overwrite`` is not set.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(f"{path} is a file; choose another name for the folder")
    if path.exists() and not overwrite and any(path.iterdir()):
        raise InputError(f"{path} exists already; choose another folder, or pass --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        for file in part.rglob("*"):
            file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)  # some writers keep files to their owner
            _sync(file)
        _sync(part)
        if path.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.replace(path, old)  # a folder can be renamed onto an empty one, not onto a full one
            os.replace(part, path)
            shutil.rmtree(old)
        else:
            os.replace(part, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as JSON, by way of :func:`written_beside`."""
    with written_beside(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value in ``path``.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None

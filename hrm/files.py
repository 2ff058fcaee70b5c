"""Writing so that nothing is lost: a file or folder is complete under its name, or it is not there."""

import codecs
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
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


def require_writable(folder: Path) -> None:
    """Refuse before the work a folder that could not be made, or written to, after it.

    Raises:
        NotADirectoryError, PermissionError: as the attempt would.
    """
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def require_file(path: Path) -> None:
    """Refuse before the work a file that could not be written after it.

    Raises:
        InputError: ``path`` is a folder.
        NotADirectoryError, PermissionError: see :func:`require_writable`.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    require_writable(path.parent)


def require_new(path: Path, overwrite: bool, kind: str = "", files: Collection[str] = ()) -> None:
    """Refuse before the work a folder that could not be put in place after it, or would cost what is there.

    Args:
        path: the new folder.
        overwrite: a folder that exists is replaced.
        kind: what is replaced, in words, such as "data folder"; without it, any folder.
        files: patterns of all the files that one of that kind may hold.

    Raises:
        InputError: ``path`` is a file, cannot be replaced, or holds anything and is not to be replaced.
        NotADirectoryError, PermissionError: see :func:`require_writable`.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; choose another name for the folder")
    if path.exists():
        # The one cannot be renamed; the other would leave the shell in a folder that is gone.
        if os.path.ismount(path) or Path.cwd().is_relative_to(path.resolve()):
            raise InputError(
                f"{path} is a mount point or the folder you are in, and cannot be replaced as a whole; "
                "give the name of a new folder in it"
            )
        if not overwrite and any(path.iterdir()):
            raise InputError(f"{path} exists already; choose another folder, or pass --force to replace it")
        known = {file for pattern in files for file in path.glob(pattern)}
        others = (file for file in path.rglob("*") if not file.is_dir() and file not in known)
        if kind and (other := next(others, None)):
            raise InputError(
                f"{path} is no {kind} (it holds {other.relative_to(path)}), and --force replaces nothing else; "
                "choose another folder"
            )
    require_writable(path.resolve().parent)


@contextmanager
def written_beside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on leaving without an error it is fsynced and renamed to ``path``.

    A file of that name is replaced in one step; after an error it is as it was before.

    Raises:
        InputError: ``path`` is a folder.
    """
    path = Path(path)
    require_file(path)
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

    Where ``path`` is a link, the folder it leads to is made or replaced. After an error that one is as it was before.

    Raises:
        InputError, NotADirectoryError, PermissionError: see :func:`require_new`.
    """
    require_new(Path(path), overwrite)
    path = Path(path).resolve()
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
        if path.is_dir() and any(path.iterdir()):  # a folder can be renamed onto an empty one, not onto a full one
            old = part.with_suffix(".old")
            os.replace(path, old)
            try:
                os.replace(part, path)
            except BaseException:
                os.replace(old, path)
                raise
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


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins with ``head``: UTF-8, unless a byte order mark says UTF-16."""
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def decode(data: bytes) -> str:
    """A text file's content as text, without the byte order mark that Windows tools put in front.

    Raises:
        UnicodeDecodeError: it is no text.
    """
    return data.decode(encoding_of(data))


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What in ``folder`` matches, sorted, but for hidden names, such as the ``._name`` that the Mac's archiver adds."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def read_json(path: Path | str) -> Any:
    """The JSON value in ``path``.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(decode(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise InputError(f"{path} is not JSON: {error}") from None

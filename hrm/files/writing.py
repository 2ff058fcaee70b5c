"""Writing so that nothing is lost: under its name a file or folder is complete, or it does not exist."""

import ctypes
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hrm.files.locking import lock
from hrm.files.targets import behind_links, kind_of, require_file, require_new

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_beside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on leaving without an error, fsync it and rename it to ``path``.

    An existing file is replaced in one step, and unchanged after an error. Links are followed. Only regular files are
    replaced: a character device (``/dev/null``) or a pipe gets the bytes once all of them are written.

    Raises:
        InputError, NotADirectoryError, PermissionError: see :func:`hrm.files.require_file`.
        OSError: the file cannot be written, for example on a full disk; the error names ``path``.
    """
    path = Path(path)
    require_file(path)
    with _named(path):
        if kind_of(path) == "stream":
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder, "part")
                yield part
                with part.open("rb") as complete, path.open("wb") as stream:
                    shutil.copyfileobj(complete, stream)
            return
        path = behind_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(path, is_folder=False) as part:
            yield part
            part.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
            _sync(part)
            os.replace(part, path)
            _sync(path.parent)


@contextmanager
def folder_written_beside(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on leaving without an error, fsync its files and rename it.

    Links are followed. After an error an existing folder is unchanged. On Linux it is replaced in one step. Other
    systems, and file systems that cannot exchange two names, need two: a process that is killed between them leaves
    the old folder as ``.<name>.<random>.old``.

    Raises:
        InputError, NotADirectoryError, PermissionError: see :func:`hrm.files.require_new`.
        OSError: the folder cannot be written, for example on a full disk; the error names a path.
    """
    require_new(Path(path), overwrite)
    path = Path(path).resolve()
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(path, is_folder=True) as part:
            yield part
            part.chmod(0o777 & ~_umask())
            for file in part.rglob("*"):
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())  # some libraries let only the owner read
                _sync(file)
            _sync(part)
            if path.is_dir():
                _exchange(part, path)
            else:
                os.replace(part, path)
            _sync(path.parent)
            for old in _leftovers(path, "old"):  # only now: an old folder may be all that a killed process left
                _remove(old)


@contextmanager
def _part_of(path: Path, is_folder: bool) -> Iterator[Path]:
    """A temporary file or folder beside ``path``, removed at the end; first remove those of killed processes.

    Its process locks it, which tells the others that it is still in use.
    """
    for leftover in _leftovers(path, "part"):
        with suppress(OSError):  # another user's file, or another process removes it
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                if lock(descriptor):
                    _remove(leftover)
            finally:
                os.close(descriptor)
    how: tuple[str, str, Path] = (".part", f".{path.name}.", path.parent)
    while True:
        if is_folder:
            part = Path(tempfile.mkdtemp(*how))
            descriptor = os.open(part, os.O_RDONLY)
        else:
            descriptor, name = tempfile.mkstemp(*how)
            part = Path(name)
        lock(descriptor, wait=True)
        if part.exists():  # else another process removed it before the lock
            break
        os.close(descriptor)
    try:
        yield part
    finally:
        _remove(part)
        os.close(descriptor)


def _leftovers(path: Path, suffix: str) -> list[Path]:
    """Temporary files and folders of this module beside ``path``, in use or not."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.{suffix}")
    try:
        return [other for other in path.parent.iterdir() if pattern.fullmatch(other.name)]
    except PermissionError:  # the folder can be written to, but not listed
        return []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> None:
    """Exchange the names of two folders."""
    if _exchange_in_one_step(new, old):
        return
    aside = new.with_suffix(".old")
    os.replace(old, aside)
    try:
        os.replace(new, old)
    except BaseException:
        os.replace(aside, old)
        raise
    os.replace(aside, new)


def _exchange_in_one_step(first: Path, second: Path) -> bool:
    """Exchange the names if the system can do that in one step; return whether it did."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # not supported by the kernel or the file system
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add ``path`` to errors that name no file, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = error.strerror or f"not written completely ({' '.join(str(error).split())}): is the disk full?"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as JSON with :func:`written_beside`."""
    with written_beside(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def discard(stream: IO[str]) -> None:
    """Send later writes to ``stream``, whose reader is gone, to the null device: the last flush would fail too."""
    with suppress(OSError, ValueError):  # the stream has no file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

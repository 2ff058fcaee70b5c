"""Writing so that nothing is lost: a file or folder is complete under its name, or it is not there."""

import codecs
import ctypes
import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hrm.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


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

    Links are followed. Character devices and pipes can be written, into what is there.

    Raises:
        InputError: ``path`` is a folder, a socket, a block device, or a name of a file that is open (``/dev/stdout``).
        NotADirectoryError, PermissionError: see :func:`require_writable`.
    """
    kind = _kind(path)
    if kind == "folder":
        raise InputError(f"{path} is a folder; give the name of a file")
    if kind == "other":
        raise InputError(f"{path} is a socket or a block device, which is not written to; give the name of a file")
    if kind == "open file":
        raise InputError(f"{path} is a file that is open already, and would lose what it holds; give its own name")
    if kind != "stream":
        require_writable(_behind_links(path).parent)
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _kind(path: Path) -> str:
    """``file`` (or nothing yet), ``folder``, ``stream``, ``open file`` (by its descriptor) or ``other``."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "file"
    if stat.S_ISREG(mode):
        return "open file" if _is_descriptor(path) else "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "stream" if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) else "other"


def _is_descriptor(path: Path) -> bool:
    """Whether a path that exists leads through ``/dev/fd``: opening it again would empty the file under its writer."""
    while True:
        parent = os.path.realpath(path.parent)
        if parent.startswith("/proc/") or parent == "/dev/fd":
            return True
        if not path.is_symlink():
            return False
        path = Path(parent, os.readlink(path))


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


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


def lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file or folder for this process, until it is closed or the process ends, whatever ends it.

    Returns:
        Whether nobody else holds the lock; None where the system or the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def written_beside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on leaving without an error it is fsynced and renamed to ``path``.

    A file of that name is replaced in one step; after an error it is as it was before. Where ``path`` is a link, that
    is the file it leads to. What is no regular file is never replaced: a character device (``/dev/null``) or a pipe
    gets the bytes when all of them are there.

    Raises:
        InputError, NotADirectoryError, PermissionError: see :func:`require_file`.
        OSError: it cannot be written, such as on a full disk; the error names ``path``.
    """
    path = Path(path)
    require_file(path)
    with _named(path):
        if _kind(path) == "stream":
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder, "part")
                yield part
                with part.open("rb") as made, path.open("wb") as stream:
                    shutil.copyfileobj(made, stream)
            return
        path = _behind_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(path, is_folder=False) as part:
            yield part
            part.chmod(0o666 & ~_umask())  # mkstemp makes files only their owner can read
            _sync(part)
            os.replace(part, path)
            _sync(path.parent)


@contextmanager
def folder_written_beside(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on leaving without an error its files are fsynced and it is renamed.

    Where ``path`` is a link, the folder it leads to is made or replaced. After an error that one is as it was before.
    A folder is replaced in one step on Linux; on other systems, and on file systems that cannot exchange two names,
    in two: a process that is killed between them leaves the one before as ``.<name>.<random>.old``.

    Raises:
        InputError, NotADirectoryError, PermissionError: see :func:`require_new`.
        OSError: it cannot be written, such as on a full disk; the error names a path.
    """
    require_new(Path(path), overwrite)
    path = Path(path).resolve()
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(path, is_folder=True) as part:
            yield part
            part.chmod(0o777 & ~_umask())
            for file in part.rglob("*"):
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())  # some writers keep files to their owner
                _sync(file)
            _sync(part)
            if path.is_dir():
                _exchange(part, path)
            else:
                os.replace(part, path)
            _sync(path.parent)
            for old in _leftovers(path, "old"):  # not before: it may have been all that a killed process has left
                _remove(old)


@contextmanager
def _part_of(path: Path, is_folder: bool) -> Iterator[Path]:
    """A temporary file or folder beside ``path``, removed at the end; those of processes that were killed go first.

    Its process holds a lock on it, by which the others know that it is still written.
    """
    for left in _leftovers(path, "part"):
        with suppress(OSError):  # somebody else's, or somebody else is removing it
            descriptor = os.open(left, os.O_RDONLY)
            try:
                if lock(descriptor):
                    _remove(left)
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
        if part.exists():  # else somebody has removed it before the lock
            break
        os.close(descriptor)
    try:
        yield part
    finally:
        _remove(part)
        os.close(descriptor)


def _leftovers(path: Path, suffix: str) -> list[Path]:
    """Temporary names of this module beside ``path``, in use or not."""
    form = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.{suffix}")
    try:
        return [one for one in path.parent.iterdir() if form.fullmatch(one.name)]
    except PermissionError:  # a folder to write into, not to look into
        return []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> None:
    """Each folder gets the other's name."""
    if _exchanged_at_once(new, old):
        return
    aside = new.with_suffix(".old")
    os.replace(old, aside)
    try:
        os.replace(new, old)
    except BaseException:
        os.replace(aside, old)
        raise
    os.replace(aside, new)


def _exchanged_at_once(one: Path, other: Path) -> bool:
    """Whether the system could; then it has done it."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # the kernel or the file system cannot
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of writing that do not say what was written, as those of a full disk, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = error.strerror or f"not written whole ({' '.join(str(error).split())}): is the disk full?"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


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


def discard(stream: IO[str]) -> None:
    """Send to nowhere what is still written to ``stream``, whose reader is gone: the last flush would fail too."""
    with suppress(OSError, ValueError):  # no file is behind it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def checksum(path: Path) -> dict[str, int]:
    """``bytes`` and ``crc32`` of a file, for :func:`require_unchanged`."""
    crc32 = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc32, size = zlib.crc32(block, crc32), size + len(block)
    return {"bytes": size, "crc32": crc32}


def require_unchanged(path: Path, expected: Mapping[str, int]) -> None:
    """Check a file against the :func:`checksum` taken when it was written.

    Raises:
        InputError: it is missing or has changed.
    """
    size = path.stat().st_size if path.is_file() else None
    if size != expected["bytes"]:
        came = "is missing" if size is None else f"has {size} bytes"
        raise InputError(f"{path.name} {came}, expected {expected['bytes']}")
    if checksum(path)["crc32"] != expected["crc32"]:
        raise InputError(f"the contents of {path.name} have changed since it was written")

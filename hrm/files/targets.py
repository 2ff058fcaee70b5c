"""Checks before long work: can its file or folder be written at the end?"""

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from hrm.errors import InputError


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        NotADirectoryError, PermissionError: as writing would.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def require_file(path: Path) -> None:
    """Refuse a file that cannot be written. Links are followed; character devices and pipes are fine.

    Raises:
        InputError: ``path`` is a folder, a socket, a block device, or names an open file (``/dev/stdout``).
        NotADirectoryError, PermissionError: see :func:`require_writable`.
    """
    kind = kind_of(path)
    if kind == "folder":
        raise InputError(f"{path} is a folder; give the name of a file")
    if kind == "other":
        raise InputError(f"{path} is a socket or a block device, expected a file; give the name of a file")
    if kind == "open file":
        raise InputError(f"{path} is an open file and would lose its contents; give the file's name")
    if kind != "stream":
        require_writable(behind_links(path).parent)
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def kind_of(path: Path) -> str:
    """``file`` (which may not exist yet), ``folder``, ``stream``, ``open file`` (``/dev/fd/N``) or ``other``."""
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
    """Whether an existing path leads through ``/dev/fd``: opening it again would truncate a file in use."""
    while True:
        parent = os.path.realpath(path.parent)
        if parent.startswith("/proc/") or parent == "/dev/fd":
            return True
        if not path.is_symlink():
            return False
        path = Path(parent, os.readlink(path))


def behind_links(path: Path) -> Path:
    """The path with every link followed."""
    return Path(os.path.realpath(path))


def require_new(path: Path, overwrite: bool, kind: str = "", files: Collection[str] = ()) -> None:
    """Refuse a new folder that cannot be made, or whose name belongs to a folder that must not be replaced.

    Args:
        path: the new folder.
        overwrite: replace an existing folder.
        kind: the kind of folder that may be replaced, such as "data folder"; any folder if empty.
        files: patterns of all files that a folder of that kind may hold.

    Raises:
        InputError: ``path`` is a file, cannot be replaced, or holds files and is not to be replaced.
        NotADirectoryError, PermissionError: see :func:`require_writable`.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; choose another name for the folder")
    if path.exists():
        # A mount point cannot be renamed. Replacing the current folder leaves the shell in a deleted one.
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
                f"{path} is not a {kind} (it holds {other.relative_to(path)}), and --force replaces nothing else; "
                "choose another folder"
            )
    require_writable(path.resolve().parent)

"""Locks between processes."""

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file or folder for this process, until it is closed or the process ends for any reason.

    Returns:
        Whether this process has the lock; None if the system or the file system has no locks.
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

"""One run in a folder at a time."""

import os
from pathlib import Path

from hrm.errors import InputError
from hrm.files import lock
from hrm.training.distributed import World

LOCK_FILE = ".lock"


class RunLock:
    """A lock on the folder of a run. The first process holds it; the system releases it when that process ends.

    Does nothing on systems and file systems without locks.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._descriptor: int | None = None

    def take(self, world: World) -> None:
        """Take the lock; every process of ``world`` calls this.

        Raises:
            InputError: another run holds it.
        """
        taken = True
        if world.is_main and self._descriptor is None:
            self._descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            taken = lock(self._descriptor) is not False
        if world.highest(0 if taken else 1):
            self.release()
            raise InputError(
                f"another run is training in {self._folder}; wait until it ends, stop it, or choose another --out"
            )

    def release(self) -> None:
        """Let other runs use the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

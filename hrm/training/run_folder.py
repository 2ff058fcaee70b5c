"""The folder of a run: used by one run at a time, and never mixed with other files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hrm.errors import InputError
from hrm.locate import checkpoints
from hrm.training.checkpoint import Checkpoint, open_newest, remove_leftovers
from hrm.training.distributed import World
from hrm.training.run_lock import LOCK_FILE, RunLock


class RunFolder:
    """The folder that a run writes into.

    Args:
        path: the folder; it need not exist.
        resume: the run continues the run in the folder.
        world: the processes of the run; all of them call the methods.

    Attributes:
        last_checkpoint: the newest checkpoint, of this start of the run or of an earlier one; None if there is none.
    """

    def __init__(self, path: Path, resume: bool, world: World):
        self.path, self._resume, self._world = path, resume, world
        self._lock = RunLock(path)
        self.last_checkpoint: Path | None = None

    def require_free(self) -> None:
        """Refuse a file, and without ``resume`` a folder that has files.

        Raises:
            InputError: the folder cannot be used; the message says what to do.
        """
        out = self.path
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; give a folder as --out")
        if not self._resume and out.is_dir() and any(file.name != LOCK_FILE for file in out.iterdir()):
            way_out = "add --resume to continue that run, or choose" if checkpoints(out) else "choose"
            raise InputError(f"{out} is not empty; {way_out} another --out")

    def open_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from, None for a new run. No process changes the folder before all have seen it.

        Raises:
            InputError: there is no checkpoint, it is damaged, or another run uses the folder.
        """
        if not self._resume:
            self._world.barrier()
            return None
        if checkpoints(self.path) or (self.path / LOCK_FILE).exists():
            self._lock.take(self._world)
        saved = open_newest(self.path)
        self.last_checkpoint = saved.path
        self._world.barrier()
        if self._world.is_main:
            remove_leftovers(self.path)
        return saved

    def claim(self) -> None:
        """Create the folder and lock it until :meth:`release`.

        Raises:
            InputError: another run uses the folder, or used it since :meth:`require_free`.
        """
        if self._world.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock.take(self._world)
        if self._world.is_main:
            self.require_free()

    def release(self) -> None:
        """Let other runs use the folder."""
        self._lock.release()

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Explain an OSError within this context, such as a full disk, as an InputError with the way out."""
        try:
            yield
        except OSError as error:
            way_out = (
                f"the last good checkpoint is {self.last_checkpoint}; free some space and resume from it with --resume"
                if self.last_checkpoint
                else "there is no checkpoint yet; free some space and start again"
            )
            reason = error.strerror or error
            raise InputError(f"{what} cannot be written in {self.path} ({reason}); {way_out}") from error

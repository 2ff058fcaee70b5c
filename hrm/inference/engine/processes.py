"""The engines of this process: they may share a model, and they must end before the program does."""

import atexit
import os
import threading
from typing import Protocol
from weakref import WeakSet

from torch import nn

from hrm.inference.engine.queue import EngineError
from hrm.inference.segments import Modes, modes_of, restore_modes


class Runner(Protocol):
    """An engine's thread, started or about to be."""

    def stop(self, cancel: bool) -> None: ...

    def join(self) -> None: ...

    def abandon(self) -> None: ...


class _RunningEngines:
    """The runners of this process, with their models and the modes from before any engine had them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Runner, tuple[nn.Module, Modes]] = {}
        self._started: WeakSet[Runner] = WeakSet()  # with a thread, which may have ended
        self._exiting = False

    def enter(self, runner: Runner, model: nn.Module) -> None:
        """Put ``model`` in evaluation mode for ``runner``.

        Raises:
            EngineError: the program is ending.
        """
        with self._lock:
            if self._exiting:
                raise EngineError("the program is ending, and no engine starts any more")
            saved = [modes for other, modes in self._running.values() if other is model]
            self._running[runner] = model, saved[0] if saved else modes_of(model)
            self._started.add(runner)
            model.eval()

    def leave(self, runner: Runner) -> None:
        """Restore the modes of the runner's model, unless another one has it."""
        with self._lock:
            if runner not in self._running:
                return
            model, modes = self._running.pop(runner)
            if not any(other is model for other, _ in self._running.values()):
                restore_modes(modes)

    def end_all(self) -> None:
        """Cancel all engines and wait for them: a thread inside torch would abort an interpreter that ends."""
        with self._lock:
            self._exiting = True
            started = list(self._started)
        for runner in started:
            runner.stop(cancel=True)
        for runner in started:
            runner.join()

    def abandon_all(self) -> None:
        """In a forked child: the threads do not exist here, and a lock that they held stays locked for ever."""
        self._lock = threading.Lock()
        for runner in list(self._running):
            runner.abandon()
            self.leave(runner)


running_engines = _RunningEngines()
atexit.register(running_engines.end_all)  # after threads that the program waits for, before the interpreter ends
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=running_engines.abandon_all)

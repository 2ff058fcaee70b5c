"""The worker thread of an engine: it fills free slots from the queue and runs segments."""

import threading
from concurrent.futures import CancelledError

import torch

from hrm.inference.engine.batch import BatchSettings, SlotBatch
from hrm.inference.engine.delivery import deliver
from hrm.inference.engine.processes import running_engines
from hrm.inference.engine.queue import JobQueue
from hrm.openmp import release_threads
from hrm_kernels.backends import independent_rows, requested, use_backend


class Scheduler:
    """A thread that runs a batch until its queue is closed.

    Args:
        settings: of the batch.
        backend: for the ops of this thread; None takes the calling thread's choice.
        queue_size: jobs that may wait for a slot.

    Raises:
        ValueError: ``backend`` is unknown.
    """

    def __init__(self, settings: BatchSettings, backend: str | None, queue_size: int) -> None:
        self._settings = settings
        with use_backend(requested() if backend is None else backend):  # refuses an unknown name
            self._backend = requested()
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name="hrm-engine", daemon=True)
        self._ended = threading.Event()  # after an interrupted join Python 3.11 regards a thread as ended
        self.queue = JobQueue(queue_size, self._thread)

    def start(self) -> None:
        """Take the model, and start the thread.

        Raises:
            EngineError: the program is ending.
        """
        try:
            running_engines.enter(self, self._settings.model)
            release_threads()  # from here on the worker computes
            self._thread.start()
        except BaseException:
            self.stop(cancel=True)
            running_engines.leave(self)
            raise

    def close(self, cancel: bool) -> None:
        """Finish accepted jobs, or ``cancel`` them, and wait for the end of the thread."""
        try:
            self.stop(cancel)
            self.join()
        except BaseException:
            self.stop(cancel=True)
            self.join()
            raise

    def stop(self, cancel: bool) -> None:
        """:meth:`close` without waiting."""
        self.queue.close(cancel)

    def drop(self) -> None:
        """Finish accepted jobs: the engine is garbage-collected, in any thread."""
        self.queue.close_without_lock()

    def join(self) -> None:
        """Wait for the end of the thread, unless this is a callback in it."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._ended.wait()
            self._thread.join()

    def abandon(self) -> None:
        """In a forked child: the thread does not exist here."""
        self.queue.abandon()
        self._ended = threading.Event()
        self._ended.set()

    def _work(self) -> None:
        try:
            self._run()
        finally:
            self._ended.set()

    def _run(self) -> None:
        batch: SlotBatch | None = None
        failure: BaseException | None = None
        try:
            torch.set_num_threads(self._threads)  # per thread; another number may round differently
            device = torch.cuda.device_of(next(self._settings.model.parameters()))
            # not inference_mode: the model may cache tensors that a later training step uses
            # an answer does not depend on the slot and the number of slots, so neither does the choice of backends
            with device, torch.no_grad(), use_backend(self._backend), independent_rows():
                batch = SlotBatch(self._settings)
                while self.queue.fill(batch):
                    batch.run_segment()
        except BaseException as error:  # callers must learn of any error
            failure = error
        left = dict.fromkeys([*(batch.running if batch else []), *self.queue.end(failure)])
        try:
            running_engines.leave(self)
        finally:
            deliver([(job, CancelledError() if failure is None else self.queue.refusal()) for job in left])

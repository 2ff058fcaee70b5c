"""The CPU threads that torch computes with."""

import ctypes
import sys


def release_threads() -> None:
    """End the OpenMP threads of the calling thread; its next parallel operation creates new ones.

    Call this before another thread takes over the computing. Each thread that calls torch keeps a team of OpenMP
    threads. If all teams together have more threads than there are processors, GNU OpenMP lets an idle thread sleep at
    once instead of spinning for a moment (``do_spin`` in
    https://gcc.gnu.org/git/?p=gcc.git;a=blob;f=libgomp/config/linux/wait.h), and waking it takes longer than a small
    operation.

    Does nothing if torch uses another runtime: in LLVM's, all threads share one team, and pausing it pauses all.
    """
    if (runtime := gnu_runtime()) is not None:
        runtime.omp_pause_resource_all(1)  # omp_pause_soft (OpenMP 5.0, section 3.2.44)


def gnu_runtime() -> ctypes.CDLL | None:
    """GNU OpenMP if torch has loaded it, else None."""
    if sys.platform != "linux":
        return None
    loaded = ctypes.CDLL(None)
    gnu = hasattr(loaded, "omp_pause_resource_all") and not hasattr(loaded, "kmp_get_blocktime")
    return loaded if gnu else None

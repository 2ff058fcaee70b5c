"""The threads that torch computes with on a CPU."""

import ctypes
import sys


def release_threads() -> None:
    """End the OpenMP threads that the calling thread keeps between calls; its next parallel operation makes new ones.

    Each thread that calls torch keeps a team of its own. Once all teams together have more threads than there are
    processors, GNU OpenMP puts a thread without work to sleep at once, where it would have waited a moment for more
    (``do_spin`` in https://gcc.gnu.org/git/?p=gcc.git;a=blob;f=libgomp/config/linux/wait.h), and waking it takes
    longer than a small operation. So whoever leaves computing to another thread lets go of his. Nothing happens where
    torch comes with another runtime: LLVM's threads are everybody's, and pausing it pauses all.
    """
    if (runtime := gnu_runtime()) is not None:
        runtime.omp_pause_resource_all(1)  # omp_pause_soft (OpenMP 5.0, section 3.2.44)


def gnu_runtime() -> ctypes.CDLL | None:
    """GNU OpenMP where torch has loaded it, else None."""
    if sys.platform != "linux":
        return None
    loaded = ctypes.CDLL(None)
    gnu = hasattr(loaded, "omp_pause_resource_all") and not hasattr(loaded, "kmp_get_blocktime")
    return loaded if gnu else None

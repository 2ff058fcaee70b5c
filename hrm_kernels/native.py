"""Finds and loads the library built from csrc/, on the first call that needs it.

Whether there is one is found out here, at run time: an installation without a compiler has none, and says so.
"""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

LIBRARY = Path(__file__).parent / "lib" / "libhrm_kernels.so"


class Native(NamedTuple):
    """The loaded library, or why there is none: one of the two is None.

    Attributes:
        module: the ``tvm_ffi.Module``; its functions take torch tensors and write results into them.
        reason: why the library cannot be used, and what to do about it.
    """

    module: Any
    reason: str | None


@functools.cache
def load() -> Native:
    """Load the library once in the life of the process. Never raises, never compiles."""
    if not LIBRARY.exists():
        return Native(
            None,
            "the native library is not built: install a C++ compiler (Debian, Ubuntu: apt-get install g++) "
            "and install hrm again (from its source tree: pip install -e .)",
        )
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        # torch 2.9: importing tvm_ffi would compile an extension that passes tensors faster. It works without.
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    try:
        import tvm_ffi
    except Exception as error:  # a broken installation raises OSError and others, not only ImportError
        return Native(None, f"apache-tvm-ffi cannot be imported ({_line(error)}): pip install apache-tvm-ffi")
    try:
        return Native(tvm_ffi.load_module(LIBRARY), None)
    except Exception as error:
        return Native(None, f"{LIBRARY.name} cannot be loaded ({_line(error)}): install hrm again to rebuild it")


def self_test() -> str | None:
    """Pass tensors to native code and back: ``y += a * x`` in float32.

    Returns:
        None when the result is right, else what is wrong or why there is no library to test.
    """
    module, reason = load()
    if reason is not None:
        return reason
    x = torch.arange(1000, dtype=torch.float32)
    y = torch.ones(1000)
    expected = 2 * x + 1  # whole numbers below 2**24: exact in float32, in any order
    try:
        module.axpy(2.0, x, y)
    except Exception as error:
        return f"axpy raised {_line(error)}: install hrm again to rebuild the library"
    if not torch.equal(y, expected):
        return f"axpy is off by up to {(y - expected).abs().max().item()}: install hrm again to rebuild the library"
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]

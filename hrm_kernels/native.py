"""Finds and loads the libraries built from csrc/, on the first call that needs one.

There are two, ``cpu`` and ``cuda``. Whether they are there is found out here, at run time: an installation without a
compiler has neither, one without nvcc or without a GPU has no ``cuda`` (unless it was asked for), and all say so.
"""

import functools
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

FOLDER = Path(os.environ.get("HRM_KERNELS_LIBRARIES") or Path(__file__).parent / "lib")
"""Where the libraries lie; the variable is for builds of one's own, such as that of `make sanitize`."""

INSTRUCTION_SET = os.environ.get("HRM_KERNELS_INSTRUCTION_SET", "")
"""Of the CPU kernels: avx512, avx2, portable, or empty for the best that the machine has. For tests of the others."""

INTERFACE = 2
"""What the functions of the libraries take: kInterface of csrc/ffi/interface.h, and of a library of the same build."""

COMPILERS = {
    # what builds the library, and how to get it
    "cpu": "a C++ compiler (Debian, Ubuntu: apt-get install g++)",
    "cuda": "nvcc (NVIDIA's CUDA toolkit, or apt-get install nvidia-cuda-toolkit) on the PATH",
}


class Native(NamedTuple):
    """A loaded library, or why there is none: one of the two is None.

    Attributes:
        module: the ``tvm_ffi.Module``; its functions take torch tensors and write results into them.
        reason: why the library cannot be used, and what to do about it.
    """

    module: Any
    reason: str | None


def library(name: str) -> Path:
    """Where library ``name`` (``"cpu"`` or ``"cuda"``) lies once it is built."""
    return FOLDER / f"libhrm_kernels_{name}.so"


@functools.cache
def load(name: str) -> Native:
    """Load library ``name`` (``"cpu"`` or ``"cuda"``) once in the life of the process. Never raises, never compiles."""
    path = library(name)
    if not path.exists():
        return Native(None, f"the {name} library is not built: {_way_to(name)}")
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        # torch 2.9: importing tvm_ffi would compile an extension that passes tensors faster. It works without.
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    try:
        import tvm_ffi
    except Exception as error:  # a broken installation raises OSError and others, not only ImportError
        return Native(None, f"apache-tvm-ffi cannot be imported ({_line(error)}): pip install apache-tvm-ffi")
    try:
        module = tvm_ffi.load_module(path)
    except Exception as error:
        return Native(None, f"{path.name} cannot be loaded ({_line(error)}): install hrm again to rebuild it")
    interface = _interface(module)
    if interface != INTERFACE:
        return Native(
            None,
            f"{path.name} is of another build than hrm_kernels (interface {interface or 'without a number'}, expected "
            f"{INTERFACE}): install hrm again to rebuild it (from its source tree: pip install -e .)",
        )
    return _with_instruction_set(name, module)


def _with_instruction_set(name: str, module: Any) -> Native:
    if name == "cpu" and INSTRUCTION_SET:
        try:
            module.use_instruction_set(INSTRUCTION_SET)
        except ValueError as error:
            return Native(None, f"HRM_KERNELS_INSTRUCTION_SET is {INSTRUCTION_SET!r}: {_line(error)}")
    return Native(module, None)


def _interface(module: Any) -> int | None:
    try:
        return module.interface()
    except AttributeError:  # a library from before there was a number
        return None


def self_test(name: str) -> str | None:
    """Pass tensors to library ``name`` and back: ``y += a * x`` in float32, on a GPU for ``cuda``.

    Returns:
        None when the result is right, else what is wrong or why there is nothing to test.
    """
    module, reason = load(name)
    if reason is not None:
        return reason
    if name == "cuda" and not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    x = torch.arange(1000, dtype=torch.float32, device="cpu")
    y = torch.ones_like(x)
    expected = 2 * x + 1  # whole numbers below 2**24: exact in float32, in any order
    try:
        x, y = x.to(name), y.to(name)
        module.axpy(2.0, x, y)
        y = y.cpu()
    except Exception as error:
        return f"axpy raised {_line(error)}: install hrm again to rebuild the library"
    if not torch.equal(y, expected):
        return f"axpy is off by up to {(y - expected).abs().max().item()}: install hrm again to rebuild the library"
    return None


def _way_to(name: str) -> str:
    """How to build library ``name``."""
    if name == "cpu":
        return f"install {COMPILERS[name]} and install hrm again (from its source tree: pip install -e .)"
    first = "nvcc is there:" if shutil.which("nvcc") else f"install {COMPILERS[name]}, then"
    return f"{first} run HRM_KERNELS_NATIVE=cuda pip install -e . in hrm's source tree (several minutes)"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]

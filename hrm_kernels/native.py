"""Find and load the libraries built from csrc/, on the first call that needs one.

There are two, ``cpu`` and ``cuda``. This module looks for them at run time: an installation without a compiler has
neither; one without nvcc or a GPU has no ``cuda`` library, unless ``HRM_KERNELS_NATIVE=cuda`` requested it.
"""

import functools
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

FOLDER = Path(os.environ.get("HRM_KERNELS_LIBRARIES") or Path(__file__).parent / "lib")
"""The folder of the libraries; the variable selects other builds, such as that of `make sanitize`."""

INSTRUCTION_SET = os.environ.get("HRM_KERNELS_INSTRUCTION_SET", "")
"""The instruction set of the CPU kernels, for tests: avx512, avx2, portable, or empty for the best available one."""

INTERFACE = 6
"""The version of the functions' arguments; equal to kInterface of csrc/ffi/interface.h in a matching library."""

COMPILERS = {
    # the compiler of each library, and how to install it
    "cpu": "a C++ compiler (Debian, Ubuntu: apt-get install g++)",
    "cuda": "nvcc (NVIDIA's CUDA toolkit, or apt-get install nvidia-cuda-toolkit) on the PATH",
}


class Native(NamedTuple):
    """A loaded library, or the reason why it is missing: exactly one is None.

    Attributes:
        module: the ``tvm_ffi.Module``; its functions take torch tensors and write results into them.
        reason: why the library cannot be used, and how to fix that.
    """

    module: Any
    reason: str | None


def library(name: str) -> Path:
    """The path of library ``name`` (``"cpu"`` or ``"cuda"``), whether or not it is built."""
    return FOLDER / f"libhrm_kernels_{name}.so"


@functools.cache
def load(name: str) -> Native:
    """Load library ``name`` (``"cpu"`` or ``"cuda"``) once per process. Never raises, never compiles."""
    path = library(name)
    if not path.exists():
        return Native(None, f"the {name} library is not built: {_build_instructions(name)}")
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        # torch 2.9: importing tvm_ffi would compile an optional extension that passes tensors faster
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    try:
        import tvm_ffi
    except Exception as error:  # broken installations raise OSError and others, not only ImportError
        return Native(None, f"apache-tvm-ffi cannot be imported ({_first_line(error)}): pip install apache-tvm-ffi")
    try:
        module = tvm_ffi.load_module(path)
    except Exception as error:
        return Native(None, f"{path.name} cannot be loaded ({_first_line(error)}): install hrm again to rebuild it")
    interface = _interface(module)
    if interface != INTERFACE:
        return Native(
            None,
            f"{path.name} is from another build than hrm_kernels (got interface {interface or 'without a number'}, "
            f"expected {INTERFACE}): install hrm again to rebuild it (from its source tree: pip install -e .)",
        )
    return _with_instruction_set(name, module)


def _with_instruction_set(name: str, module: Any) -> Native:
    if name == "cpu" and INSTRUCTION_SET:
        try:
            module.use_instruction_set(INSTRUCTION_SET)
        except ValueError as error:
            return Native(None, f"HRM_KERNELS_INSTRUCTION_SET is {INSTRUCTION_SET!r}: {_first_line(error)}")
    return Native(module, None)


def _interface(module: Any) -> int | None:
    try:
        return module.interface()
    except AttributeError:  # libraries of old builds have no number
        return None


def self_test(name: str) -> str | None:
    """Run ``y += a * x`` of library ``name`` in float32, on a GPU for ``cuda``.

    Returns:
        None if the result is right, else the failure, or the reason why the library cannot be tested.
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
        return f"axpy raised {_first_line(error)}: install hrm again to rebuild the library"
    if not torch.equal(y, expected):
        return f"axpy is wrong by up to {(y - expected).abs().max().item()}: install hrm again to rebuild the library"
    return None


def _build_instructions(name: str) -> str:
    """Say how to build library ``name``."""
    if name == "cpu":
        return f"install {COMPILERS[name]} and install hrm again (from its source tree: pip install -e .)"
    first = "nvcc is installed:" if shutil.which("nvcc") else f"install {COMPILERS[name]}, then"
    return f"{first} run HRM_KERNELS_NATIVE=cuda pip install -e . in hrm's source tree (several minutes)"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]

"""The CUDA kernels, built for the CPU by csrc/simt, once for all tests (and all of their processes)."""

import ctypes
import fcntl
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm_kernels import native
from hrm_kernels.ops.reasoning_module import cuda_kernels

ROOT = Path(__file__).parents[2]
backends = sys.modules["hrm_kernels.backends"]  # the function hides the module


@dataclass
class Simt:
    """``library``: its C functions; ``module``: the functions of the cuda library, for CPU tensors."""

    library: ctypes.CDLL
    module: Any

    def configure(self, multiprocessors=3, order=0):
        """The pretended device; order 0: threads ascending, 1: descending, else a random one."""
        self.library.simt_configure(multiprocessors, order)

    def guarded(self, tensor):
        """A copy of ``tensor`` that ends where the memory that may be accessed ends."""
        size = tensor.numel() * tensor.element_size()
        address = self.library.simt_guarded_alloc(size)
        buffer = (ctypes.c_char * size).from_address(address)
        return torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


@pytest.fixture(scope="session")
def simt(tmp_path_factory):
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("csrc/simt is for Linux on x86-64 and aarch64")
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    tvm_ffi = pytest.importorskip("tvm_ffi")
    # pytest-xdist: the folder above belongs to the run as a whole
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "simt"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DPROBES={ROOT / 'tests' / 'csrc' / 'probes.cu'}"]
        for command in (
            ["cmake", "-S", ROOT / "csrc" / "simt", "-B", folder, "-G", "Ninja", *options],
            ["cmake", "--build", folder],
        ):
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
    path = folder / "libhrm_kernels_simt.so"
    library = ctypes.CDLL(str(path))
    library.simt_guarded_alloc.restype = ctypes.c_void_p
    library.simt_guarded_alloc.argtypes = [ctypes.c_size_t]
    return Simt(library, tvm_ffi.load_module(path))


@pytest.fixture
def cuda_on_cpu(simt, monkeypatch):
    """The cuda backend serves CPU tensors."""
    simt.configure()
    load = native.load
    monkeypatch.setattr(native, "load", lambda name: native.Native(simt.module, None) if name == "cuda" else load(name))
    monkeypatch.setattr(backends, "CUDA_DEVICE", "cpu")
    answers = (cuda_kernels._ask, cuda_kernels._workspace_bytes, backends._ask_cuda_library)
    for cached in answers:
        cached.cache_clear()
    yield simt
    for cached in answers:
        cached.cache_clear()

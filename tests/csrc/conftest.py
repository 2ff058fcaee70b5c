"""The CUDA kernels, built for the CPU by csrc/simt once for all tests and processes."""

import ctypes
import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm_kernels import backends, native
from hrm_kernels.ops.reasoning_module import cuda_kernels

ROOT = Path(__file__).parents[2]
CHECKED = ["-O1", "-fsanitize=thread"]
"""Options of the compiler for kernels that report their memory accesses to csrc/simt/race.cpp."""


@dataclass
class Simt:
    """``library``: the C functions; ``module``: the functions of the cuda library, for CPU tensors."""

    library: ctypes.CDLL
    module: Any

    @classmethod
    def load(cls, path):
        import tvm_ffi

        library = ctypes.CDLL(str(path))
        library.simt_guarded_alloc.restype = ctypes.c_void_p
        library.simt_guarded_alloc.argtypes = [ctypes.c_size_t]
        return cls(library, tvm_ffi.load_module(path))

    def configure(self, multiprocessors=3, order=0, capability=8, cooperative=1, shared=99 << 10, resident=1):
        """Set the simulated device; order 0: threads ascending, 1: descending, else random.

        ``shared``: largest shared memory of a block in bytes (default: the smallest of the targets); ``resident``:
        blocks per multiprocessor.
        """
        device = (ctypes.c_int * 5)(multiprocessors, capability, cooperative, shared, resident)
        self.library.simt_configure(device, order)

    def check_races(self, enabled=True):
        """Check launches for data races; only kernels compiled with -fsanitize=thread report their accesses."""
        self.library.simt_check_races(int(enabled))

    def guarded(self, tensor):
        """Copy ``tensor`` to the end of accessible memory."""
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
    pytest.importorskip("tvm_ffi")
    # pytest-xdist: all workers share the parent folder
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
    return Simt.load(folder / "libhrm_kernels_simt.so")


@pytest.fixture(scope="session")
def checked_probes(simt, tmp_path_factory):
    """The probes alone, with the race check on."""
    folder = tmp_path_factory.mktemp("races")
    flags = ["-std=c++17", "-fPIC", "-DHRM_SIMT", f"-I{ROOT / 'csrc' / 'simt' / 'include'}", f"-I{ROOT / 'csrc'}", "-w"]
    sources = [
        *(ROOT / "csrc" / "simt" / name for name in ("simt.cpp", "race.cpp")),
        ROOT / "tests" / "csrc" / "probes.cu",
    ]
    objects = []
    for source in sources:
        objects.append(folder / f"{source.name}.o")
        checked = [*CHECKED, "-xc++"] if source.suffix == ".cu" else ["-O1"]
        subprocess.run(["c++", *flags, *checked, "-c", source, "-o", objects[-1]], check=True)
    subprocess.run(["c++", "-shared", *objects, "-ldl", "-o", folder / "probes.so"], check=True)
    library = ctypes.CDLL(str(folder / "probes.so"))
    library.simt_guarded_alloc.restype = ctypes.c_void_p
    library.simt_guarded_alloc.argtypes = [ctypes.c_size_t]
    found = Simt(library, None)
    found.check_races()
    return found


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


@pytest.fixture
def broken(cuda_on_cpu, monkeypatch, tmp_path):
    """``broken(source, old, new)``: the harness with ``old`` replaced by ``new`` in csrc/cuda/``source``.cu.

    The cuda backend uses it until the end of the test. With ``races`` it checks the launches of this file for data
    races; None as ``old`` changes nothing.
    """

    def build(source, old, new, races=False):
        folder = Path(cuda_on_cpu.library._name).parent
        path, library = ROOT / "csrc" / "cuda" / f"{source}.cu", tmp_path / "broken.so"
        text, changed = path.read_text(), tmp_path / path.name
        if old is not None:
            assert text.count(old) == 1, f"{path.name} contains {old!r} {text.count(old)} times, expected once"
        changed.write_text(text if old is None else text.replace(old, new))
        command = ["ninja", "-C", folder, "-t", "commands"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        commands = [line.split("&& ")[-2 if line.endswith("&& :") else -1] for line in listed.splitlines()]
        compiling = next(shlex.split(line) for line in commands if str(path) in line and " -c " in line)
        linking, right_object = shlex.split(commands[-1]), compiling[compiling.index("-o") + 1]
        compiling = [{str(path): str(changed)}.get(part, part) for part in compiling]
        compiling[compiling.index("-o") + 1] = str(tmp_path / "broken.o")
        linking = [{right_object: str(tmp_path / "broken.o")}.get(part, part) for part in linking]
        linking[linking.index("-o") + 1] = str(library)
        for command in ([*compiling, *(CHECKED if races else ["-O0"]), "-w"], linking):
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        simt = Simt.load(library)
        simt.check_races(races)
        monkeypatch.setattr(native, "load", lambda name: native.Native(simt.module, None))
        return simt

    return build

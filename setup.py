"""Build csrc/ with CMake if compilers are installed: a library for the CPU, and one for CUDA on machines with a GPU.

Without a C++ compiler only the Python part is installed; ``hrm_kernels.native`` looks for the libraries at run time.
``HRM_KERNELS_NATIVE`` selects what to build: ``0`` nothing, ``cpu`` the CPU library, ``cuda`` (or ``all``) both, even
without a GPU. ``HRM_CUDA_ARCHS="80;90a"`` selects CUDA's targets and implies ``cuda``. For wheels (wheels/build.py)
``HRM_KERNELS_PORTABLE=1`` lets the libraries run on older systems, and ``HRM_KERNELS_PREBUILT=FOLDER`` takes libraries
that are built already.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
LIBRARIES = Path("hrm_kernels", "lib")
WANTED = os.environ.get("HRM_KERNELS_NATIVE", "")
PREBUILT = os.environ.get("HRM_KERNELS_PREBUILT", "")
PORTABLE = os.environ.get("HRM_KERNELS_PORTABLE") == "1"
CHOICES = {
    "0": "no native library",
    "cpu": "none for CUDA",
    "cuda": "both, the one for CUDA without a GPU too",
    "all": "the same as cuda",
    "": "unset: the one for CUDA where there is a GPU",
}


def library(name: str) -> str:
    return f"libhrm_kernels_{name}.so"


def why_not_native() -> str | None:
    """Return the reason to install without native libraries, or None to build them."""
    if WANTED not in CHOICES:
        choices = ", ".join(f"{name or chr(39) * 2} ({meaning})" for name, meaning in CHOICES.items())
        sys.exit(f"hrm: HRM_KERNELS_NATIVE is {WANTED!r}; expected {choices}")
    if WANTED == "0":
        return "HRM_KERNELS_NATIVE=0"
    if PREBUILT:
        if not Path(PREBUILT, library("cpu")).exists():
            sys.exit(f"hrm: HRM_KERNELS_PREBUILT is {PREBUILT!r}, which has no {library('cpu')}")
        return None
    # The names that CMake tries; CXX may contain arguments or a wrapper ("ccache g++").
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    for tools in (compilers, ["cmake"], ["ninja"]):
        if not any(map(shutil.which, tools)):
            return f"no {' or '.join(tools)} found"
    return None


def why_not_cuda() -> str | None:
    """Return the reason to omit the CUDA library, or None. Building takes minutes, so it needs a GPU or a request."""
    if WANTED == "cpu":
        return "HRM_KERNELS_NATIVE=cpu"
    if PREBUILT:
        return None if Path(PREBUILT, library("cuda")).exists() else f"{PREBUILT} has no {library('cuda')}"
    compiler = (shlex.split(os.environ.get("CUDACXX", "")) or ["nvcc"])[0]  # as in CMake
    if not shutil.which(compiler):
        return f"no {compiler} found"
    if WANTED in ("cuda", "all") or os.environ.get("HRM_CUDA_ARCHS") or has_gpu():
        return None
    return "no NVIDIA GPU found (HRM_KERNELS_NATIVE=cuda builds it without one)"


def has_gpu() -> bool:
    """Whether the driver lists an NVIDIA GPU."""
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


class BuildWithCMake(build_ext):
    """Build csrc/ with CMakeLists.txt, and install it into the wheel or, for an editable install, into the tree."""

    def get_ext_filename(self, fullname: str) -> str:
        # no interpreter tag: the library serves every Python
        return str(LIBRARIES / f"{fullname.rpartition('.')[2]}.so")

    def build_extensions(self) -> None:
        names = [extension.name.rpartition("_")[2] for extension in self.extensions]
        if PREBUILT:
            Path(self.build_lib, LIBRARIES).mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copy(Path(PREBUILT, library(name)), Path(self.build_lib, LIBRARIES))
            return
        times = {"cpu": "CPU (a minute or two)", "cuda": "CUDA (several minutes; HRM_KERNELS_NATIVE=cpu leaves it out)"}
        print(f"hrm: building for {' and '.join(times[name] for name in names)}", file=sys.stderr, flush=True)
        # A new directory: a cache of CMake would name tools of a deleted build environment.
        with tempfile.TemporaryDirectory() as build:
            for command in (
                ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
                 f"-DHRM_CUDA={'ON' if 'cuda' in names else 'OFF'}", f"-DHRM_PORTABLE={'ON' if PORTABLE else 'OFF'}"],
                ["cmake", "--build", build],
                ["cmake", "--install", build, "--prefix", Path(self.build_lib).resolve()],
            ):  # fmt: skip
                if subprocess.run(command).returncode:
                    sys.exit(
                        f"hrm: {shlex.join(map(str, command))} failed, see above. HRM_KERNELS_NATIVE=0 installs "
                        "without the native libraries, HRM_KERNELS_NATIVE=cpu without the one for CUDA."
                    )

    def copy_extensions_to_source(self) -> None:
        (ROOT / LIBRARIES).mkdir(exist_ok=True)
        for old in (ROOT / LIBRARIES).glob("*.so"):  # remove old libraries, which may not fit the code
            old.unlink()
        super().copy_extensions_to_source()


class AnyPythonWheel(bdist_wheel):
    """One wheel serves every Python 3 of a platform: the libraries use no Python API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


names = []
for name, reason in (("cpu", why_not_native()), ("cuda", why_not_native() or why_not_cuda())):
    if reason is None:
        names.append(name)
    elif name == "cuda" and WANTED in ("cuda", "all"):
        sys.exit(f"hrm: HRM_KERNELS_NATIVE={WANTED} requests the native cuda library, but it cannot be built: {reason}")
    else:
        left_out = f"hrm: {reason}, so the native {name} library is not built; `hrm doctor` shows what this means"
        print(left_out, file=sys.stderr)
setup(
    ext_modules=[Extension(f"hrm_kernels.lib.libhrm_kernels_{name}", sources=[]) for name in names],
    cmdclass={"build_ext": BuildWithCMake, "bdist_wheel": AnyPythonWheel},
)

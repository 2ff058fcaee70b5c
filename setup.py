"""Builds csrc/ with CMake where a C++ compiler is found; without one the Python part is installed alone.

Nothing is recorded about it: ``hrm_kernels.native`` looks for the library at run time.
``HRM_KERNELS_NATIVE=0 pip install ...`` leaves csrc/ out where a compiler is found but cannot build it.
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
LIBRARY = Path("hrm_kernels", "lib", "libhrm_kernels.so")


def why_not_native() -> str | None:
    """The reason to install without csrc/, or None to build it."""
    if os.environ.get("HRM_KERNELS_NATIVE") == "0":
        return "HRM_KERNELS_NATIVE=0"
    # The names CMake tries; CXX may carry arguments or a wrapper ("ccache g++").
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    for tools in (compilers, ["cmake"], ["ninja"]):
        if not any(map(shutil.which, tools)):
            return f"no {' or '.join(tools)} found"
    return None


class BuildWithCMake(build_ext):
    """Builds and installs csrc/ as CMakeLists.txt says, into the wheel or, for an editable install, into the tree."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(LIBRARY)  # the library is the same for every Python: no interpreter tag in its name

    def build_extension(self, ext: Extension) -> None:
        # A directory of its own: CMake's cache would name tools of an isolated build environment that is gone.
        with tempfile.TemporaryDirectory() as build:
            for command in (
                ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"],
                ["cmake", "--build", build],
                ["cmake", "--install", build, "--prefix", Path(self.build_lib).resolve()],
            ):
                if subprocess.run(command).returncode:
                    sys.exit(
                        f"hrm: {shlex.join(map(str, command))} failed, see above. "
                        "HRM_KERNELS_NATIVE=0 installs without the native library."
                    )

    def copy_extensions_to_source(self) -> None:
        (ROOT / LIBRARY).parent.mkdir(exist_ok=True)
        super().copy_extensions_to_source()


class AnyPythonWheel(bdist_wheel):
    """One wheel serves every Python 3 of a platform: the library uses no Python API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


reason = why_not_native()
if reason:
    print(f"hrm: {reason}, so the native library is left out; `hrm doctor` says what that means", file=sys.stderr)
setup(
    ext_modules=[] if reason else [Extension("hrm_kernels.lib.libhrm_kernels", sources=[])],
    cmdclass={"build_ext": BuildWithCMake, "bdist_wheel": AnyPythonWheel},
)

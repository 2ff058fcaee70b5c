"""Build the wheels: ``hrm-kernels`` with its native libraries, and ``hrm``, which is pure Python and requires it.

python wheels/build.py --out dist           # what `make wheels` runs; needs auditwheel, patchelf and twine
python wheels/build.py --out dist --cuda    # with the CUDA library, for all usual GPUs: needs nvcc, takes long

A wheel serves every Python 3 of its platform. On Linux auditwheel checks that it runs with glibc 2.28 and newer.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.resolve()
COMMON = ("LICENSE", "MANIFEST.in")
OF_KERNELS = ("setup.py", "CMakeLists.txt", "csrc", "hrm_kernels")
OF_HRM = ("README.md", "hrm")
UNWANTED = shutil.ignore_patterns("lib", "__pycache__")
GLIBC = "2_28"
FROM_TVM_FFI = "libtvm_ffi.so"
"""The library that `import tvm_ffi` loads before ours is opened; the wheel must not have a second copy."""


def version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def kernels_tree(tree: Path) -> Path:
    """A source tree of ``hrm-kernels``."""
    _copy((*COMMON, *OF_KERNELS), tree)
    text = (ROOT / "wheels" / "hrm-kernels.toml").read_text()
    (tree / "pyproject.toml").write_text(text.replace("@version@", version()))
    shutil.copy(ROOT / "wheels" / "hrm-kernels.md", tree / "README.md")
    return tree


def hrm_tree(tree: Path) -> Path:
    """A source tree of ``hrm`` without ``hrm_kernels``."""
    _copy((*COMMON, *OF_HRM), tree)
    text = (ROOT / "pyproject.toml").read_text()
    tools = ', "cmake>=3.20", "ninja", "apache-tvm-ffi>=0.1.11"]'
    for old, new in (
        (f'requires = ["setuptools>=77"{tools}', 'requires = ["setuptools>=77"]'),
        ('\ndependencies = [\n', f'\ndependencies = [\n    "hrm-kernels=={version()}",\n'),
        ('include = ["hrm", "hrm.*", "hrm_kernels", "hrm_kernels.*"]', 'include = ["hrm", "hrm.*"]'),
        ('\nhrm_kernels = ["**/*.json", "py.typed"]', ""),
    ):  # fmt: skip
        if text.count(old) != 1:
            sys.exit(
                f"wheels: pyproject.toml has {text.count(old)} times {old!r}, expected once; change wheels/build.py"
            )
        text = text.replace(old, new)
    (tree / "pyproject.toml").write_text(text)
    return tree


def _copy(names: tuple[str, ...], tree: Path) -> None:
    tree.mkdir()
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=UNWANTED)
        else:
            shutil.copy(source, tree / name)


def run(*command: str | Path, **variables: str) -> None:
    result = subprocess.run(command, env=os.environ | variables)
    if result.returncode:
        sys.exit(f"wheels: {' '.join(map(str, command))} failed, see above")


def audited(wheel: Path, out: Path) -> None:
    """Put ``wheel`` into ``out`` under the name of the platforms it runs on; auditwheel refuses others."""
    target = f"manylinux_{GLIBC}_{platform.machine()}"
    run(
        sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", target,
        "--exclude", FROM_TVM_FFI, "-w", out, wheel,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder of the wheels")
    parser.add_argument("--cuda", action="store_true", help="build the CUDA library too (needs nvcc, not a GPU)")
    parser.add_argument("--prebuilt", type=Path, help="take the libraries of this folder instead of building any")
    parser.add_argument("--no-isolation", action="store_true", help="build with the packages that are installed here")
    parser.add_argument(
        "--unchecked", action="store_true", help="no auditwheel and twine: a wheel for this machine only"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    variables = {"HRM_KERNELS_NATIVE": "cuda" if arguments.cuda else "cpu", "HRM_KERNELS_PORTABLE": "1"}
    if arguments.prebuilt:
        variables["HRM_KERNELS_PREBUILT"] = str(arguments.prebuilt.resolve())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check"]
    pip += ["--no-build-isolation"] if arguments.no_isolation else []
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "built")
        run(*pip, "-w", built, kernels_tree(Path(folder, "kernels")), **variables)
        (wheel,) = built.glob("*.whl")
        if wheel.name.endswith("-any.whl"):
            sys.exit("wheels: the native library was not built: install a C++ compiler, cmake and ninja")
        if arguments.unchecked or platform.system() != "Linux":
            shutil.copy(wheel, arguments.out)
        else:
            audited(wheel, arguments.out)
        run(*pip, "-w", arguments.out, hrm_tree(Path(folder, "hrm")))
    wheels = sorted(arguments.out.glob(f"hrm*-{version()}-*.whl"))
    if not arguments.unchecked:
        run(sys.executable, "-m", "twine", "check", "--strict", *wheels)
    print(*wheels, sep="\n")


if __name__ == "__main__":
    main()

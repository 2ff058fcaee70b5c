import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hrm_kernels import native

INTERFACE = 6, "c6d62afa36d32fb1"  # its number, and a hash of the exports with that number
compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
needs_library = pytest.mark.skipif(
    not compiler and not native.library("cpu").exists(), reason="no C++ compiler, so no native library"
)


@pytest.fixture
def module():
    loaded, reason = native.load("cpu")
    assert reason is None
    return loaded


@pytest.fixture
def fresh_load():
    native.load.cache_clear()
    yield
    native.load.cache_clear()


@needs_library
def test_installing_with_a_compiler_built_the_library(module):
    assert native.self_test("cpu") is None
    assert native.load("cpu") is native.load("cpu")


@needs_library
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 4), (10_001,)])
def test_axpy_matches_torch(module, shape):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator) for _ in range(2))
    expected = (y.double() + -0.75 * x.double()).float()
    module.axpy(-0.75, x, y)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@needs_library
def test_axpy_reads_views_at_their_offset(module):
    base = torch.arange(10, dtype=torch.float32)
    y = torch.zeros(3)
    module.axpy(1.0, base[4:7], y)
    assert y.tolist() == [4, 5, 6]


@needs_library
def test_axpy_of_a_tensor_with_itself(module):
    x = torch.tensor([1.0, 2.0, 3.0])
    module.axpy(1.0, x, x)
    assert x.tolist() == [2, 4, 6]


@needs_library
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(3, dtype=torch.float64), torch.zeros(3), TypeError, "axpy: x is float64; pass float32"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), TypeError, "axpy: y is bfloat16; pass float32"),
        (torch.zeros(3), torch.zeros(4), ValueError, r"axpy: x has shape \[3\] and y \[4\]; pass equal shapes"),
        (torch.zeros(2, 3), torch.zeros(3, 2), ValueError, r"x has shape \[2, 3\] and y \[3, 2\]"),
        (torch.zeros(3), torch.zeros(3, 1), ValueError, r"x has shape \[3\] and y \[3, 1\]"),
        (torch.zeros(4, 4).T, torch.zeros(4, 4), ValueError, r"x of shape \[4, 4\] is not contiguous; pass x.contig"),
        (None, torch.zeros(3), TypeError, "argument #1"),
        ("text", torch.zeros(3), TypeError, "argument #1"),
    ],
)
def test_wrong_arguments_raise_python_errors(module, x, y, error, message):
    with pytest.raises(error, match=message):
        module.axpy(1.0, x, y)


@needs_library
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_tensor_is_refused(module):
    with pytest.raises(ValueError, match=r"y is on DLPack device type 2; pass a CPU tensor \(y.cpu\(\)\)"):
        module.axpy(1.0, torch.zeros(3), torch.zeros(3, device="cuda"))


@pytest.mark.parametrize(
    ("name", "compiler", "instruction"),
    [
        ("cpu", False, "install a C++ compiler (Debian, Ubuntu: apt-get install g++) and install hrm again"),
        ("cuda", False, "install nvcc (NVIDIA's CUDA toolkit, or apt-get install nvidia-cuda-toolkit) on the PATH"),
        ("cuda", True, "nvcc is installed: run HRM_KERNELS_NATIVE=cuda pip install -e . in hrm's source tree"),
    ],
)
def test_missing_library_is_a_reason(fresh_load, monkeypatch, tmp_path, name, compiler, instruction):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.setattr(native.shutil, "which", lambda tool: tool if compiler else None)
    module, reason = native.load(name)
    assert module is None
    assert reason.startswith(f"the {name} library is not built: {instruction}") and "pip install -e ." in reason
    assert native.self_test(name) == reason


def test_missing_tvm_ffi_is_a_reason(fresh_load, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.library("cpu").touch()
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)  # makes the import fail
    assert "pip install apache-tvm-ffi" in native.self_test("cpu")


def test_broken_library_is_a_reason(fresh_load, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.library("cuda").write_bytes(b"not a library")
    assert "libhrm_kernels_cuda.so cannot be loaded" in native.self_test("cuda")


@pytest.mark.parametrize(("interface", "shown"), [(None, "without a number"), (1, "1")])
def test_a_library_of_another_build_is_a_reason(fresh_load, monkeypatch, tmp_path, interface, shown):
    """Its functions may be missing or take other arguments."""
    import tvm_ffi

    class Old:
        def axpy(self, a, x, y):
            y.add_(x, alpha=a)

        def __getattr__(self, name):
            if name == "interface" and interface:
                return lambda: interface
            raise AttributeError(f"Module has no function '{name}'")

    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.library("cpu").touch()
    monkeypatch.setattr(tvm_ffi, "load_module", lambda path: Old())
    reason = native.self_test("cpu")
    assert reason.startswith("libhrm_kernels_cpu.so is from another build than hrm_kernels")
    assert f"(got interface {shown}, expected {native.INTERFACE})" in reason and "pip install -e ." in reason


def test_the_interface_number_goes_up_with_the_exports():
    """The hash covers the names and arguments of all exports."""
    ffi = Path(__file__).parents[2] / "csrc" / "ffi"
    lines = []
    for source in (ffi / "cpu.cpp", ffi / "cuda.cpp"):
        text = re.sub(r"\s+", " ", source.read_text())
        for name in re.findall(r"TYPED_FUNC\((\w+),", text):
            found = re.search(rf"(\w+\*?) {name}\(([^)]*)\) {{", text)
            lines.append(f"{source.name} {found.group(1)} {name}({found.group(2)})" if found else name)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert re.search(r"kInterface = (\d+);", (ffi / "interface.h").read_text()).group(1) == str(native.INTERFACE)
    assert (native.INTERFACE, digest) == INTERFACE, (
        "the exports of csrc/ffi have changed: raise kInterface (csrc/ffi/interface.h), native.INTERFACE and "
        "INTERFACE above"
    )


def test_wrong_results_fail_the_self_test(monkeypatch):
    class Wrong:
        @staticmethod
        def axpy(a, x, y):
            y.add_(x)

    monkeypatch.setattr(native, "load", lambda name: native.Native(Wrong, None))
    assert "axpy is wrong by up to 999.0" in native.self_test("cpu")


@pytest.mark.skipif(not native.library("cuda").exists(), reason="not built: HRM_KERNELS_NATIVE=cuda make install")
def test_cuda_library():
    """The library loads on every machine; without a GPU its self-test says so."""
    module, reason = native.load("cuda")
    assert reason is None
    with pytest.raises(ValueError, match=r"x is on DLPack device type 1; pass a CUDA tensor \(x.cuda\(\)\)"):
        module.axpy(1.0, torch.zeros(3), torch.zeros(3))
    expected = None if torch.cuda.is_available() else "there is no GPU that torch can use"
    assert native.self_test("cuda") == expected


@needs_library
def test_torch_without_the_fast_dlpack_exchange_compiles_nothing(tmp_path):
    # torch 2.9, for which importing tvm_ffi compiles an extension into its cache
    program = """
import os, torch
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__
from hrm_kernels import native
assert native.self_test("cpu") is None, native.self_test("cpu")
assert not os.listdir(os.environ["TVM_FFI_CACHE_DIR"])
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "TVM_FFI_CACHE_DIR": str(tmp_path)})

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import hrm_kernels
from hrm_kernels import doctor, native


@pytest.mark.parametrize("command", [("-m", "hrm_kernels.doctor"), ("-m", "hrm", "doctor")])
def test_json(command):
    result = subprocess.run([sys.executable, *command, "--json"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["backends"] == hrm_kernels.available_backends()
    assert report["native"] == {name: doctor._library(name) for name in ("cpu", "cuda")}
    assert len(report["gpus"]) == torch.cuda.device_count()
    usable = {name for name, reason in report["backends"].items() if reason is None}
    usable |= {f"native {name}" for name, reason in report["native"].items() if reason is None}
    assert report["computes"] == doctor._computes()
    assert report["self_tests"].keys() == usable >= {"reference"}
    assert set(report["self_tests"].values()) == {None}


def test_text(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    sets = doctor._computes()["dtypes"]["bfloat16"]
    assert f"bfloat16        cpu backend: {sets['cpu'] or 'no library'}, PyTorch: {sets['pytorch']}\n" in text
    assert f"automatic dtype {'bfloat16' if sets['cpu'] in ('amx', 'avx512_bf16') else 'float32'} (" in text
    for expected in (f"torch           {torch.__version__}", "C++ compiler", "reference       yes, self-test passed"):
        assert expected in text


def test_without_compilers_on_the_path(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native, "load", lambda name: native.Native(None, f"the {name} library is not built: ..."))
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert "C++ compiler    not found: apt-get install g++" in text
    assert "ninja           not found: apt-get install ninja-build" in text
    assert "  cpu             no: the cpu library is not built" in text
    assert "  cuda            no: the cuda library is not built" in text


def test_tools_that_fail_or_print_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    scripts = {"broken": "exit 3", "silent": "", "nvcc2": "echo nvcc: NVIDIA; echo release 13.0, V13"}
    for name, script in scripts.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    assert "does not run" in doctor._tool(("broken",), "")["get"]
    assert doctor._tool(("silent",), "")["version"] == "unknown version"
    assert doctor._tool(("absent", "nvcc2"), "")["version"] == "release 13.0, V13"


def test_wrong_backend_fails(monkeypatch, capsys):
    monkeypatch.setattr(hrm_kernels, "add_rms_norm", lambda x, residual, eps: x + residual)
    assert doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "differs from float64 by" in report["self_tests"]["reference"]
    assert doctor.main([]) == 1
    assert "reference       SELF-TEST FAILED: add_rms_norm differs from float64 by" in capsys.readouterr().out


def test_raising_backend_and_nan_fail(monkeypatch):
    monkeypatch.setattr(hrm_kernels, "add_rms_norm", lambda x, residual, eps: x * float("nan"))
    assert "differs from float64 by nan" in doctor._test_backend("reference")

    def broken(x, residual, eps):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(hrm_kernels, "add_rms_norm", broken)
    assert doctor._test_backend("reference") == "add_rms_norm raised RuntimeError: no kernel image"


def test_failing_native_library_fails(monkeypatch):
    module = SimpleNamespace(instruction_set=lambda: "avx2", bfloat16_instruction_set=lambda: "avx2")
    monkeypatch.setattr(native, "load", lambda name: native.Native(module, None if name == "cpu" else "not built"))
    monkeypatch.setattr(native, "self_test", lambda name: "axpy is wrong by up to 1.0")
    report = doctor.report()
    assert report["self_tests"]["native cpu"] == "axpy is wrong by up to 1.0"
    assert "  cpu             SELF-TEST FAILED: axpy is wrong" in doctor.render(report)


def test_a_library_without_a_gpu_is_no_failure(monkeypatch):
    monkeypatch.setattr(native, "load", lambda name: native.Native(object(), None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._library("cpu") is None
    assert doctor._library("cuda") == "built; there is no GPU that torch can use"


def test_gpus_are_listed_with_capability_and_memory(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "NVIDIA H200", 9, 0, 140 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.version, "hip", None)
    gpu = doctor._gpu(0)
    assert gpu == {"name": "NVIDIA H200", "capability": "9.0", "memory_gib": 140.0}
    report = {**doctor.report(), "gpus": [gpu]}
    assert "GPU 0           NVIDIA H200, capability 9.0, 140.0 GiB" in doctor.render(report)


def test_unknown_option_exits_2():
    with pytest.raises(SystemExit, match="2"):
        doctor.main(["--jsno"])

"""``python -m hrm_kernels.doctor [--json]``: report hardware, tools and backends, with reasons for missing ones."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import hrm_kernels
from hrm_kernels import instruction_sets, native, versions
from hrm_kernels.tuning import cpu as cpu_tuning

PACKAGES = ("hrm", "torch", "triton", "numpy", "apache-tvm-ffi")

TOOLS = {
    # name: the commands to look for, how to install the tool
    "C++ compiler": (("c++", "g++", "clang++"), "apt-get install g++"),
    "nvcc": (("nvcc",), "NVIDIA's CUDA toolkit, or apt-get install nvidia-cuda-toolkit"),
    "cmake": (("cmake",), "apt-get install cmake, or pip install cmake"),
    "ninja": (("ninja",), "apt-get install ninja-build, or pip install ninja"),
}

ISA = "avx2 fma f16c avx512f avx512bw avx512vl avx512_bf16 avx512_fp16 amx_bf16 asimd sve".split()
"""Instruction sets that kernels may depend on, by their Linux names."""


def report() -> dict[str, Any]:
    """Inspect the machine and run the self-tests.

    Returns:
        A dictionary for JSON: ``versions`` (None: not installed), ``cpu``, ``gpus``, ``tools`` (``version``, or None,
        and how to ``get`` the tool), ``native`` and ``backends`` (for each library and backend None if it is usable,
        else the reason), ``computes`` (instruction sets by dtype, what ``auto`` means, tuning tables), and
        ``self_tests`` of the usable ones (None if passed, else the failure; libraries are named ``native cpu`` and so
        on).
    """
    backends = hrm_kernels.available_backends()
    libraries = {name: _library(name) for name in native.COMPILERS}
    self_tests = {name: _test_backend(name) for name, reason in backends.items() if reason is None}
    self_tests |= {f"native {name}": native.self_test(name) for name, reason in libraries.items() if reason is None}
    return {
        "versions": {"python": platform.python_version(), **{name: versions.installed(name) for name in PACKAGES}},
        "cpu": _cpu(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "tools": {name: _tool(*commands) for name, commands in TOOLS.items()},
        "native": libraries,
        "backends": backends,
        "computes": _computes(),
        "self_tests": self_tests,
    }


def _library(name: str) -> str | None:
    reason = native.load(name).reason
    if reason is None and name == "cuda" and not torch.cuda.is_available():
        return "built; there is no GPU that torch can use"
    return reason


def _computes() -> dict[str, Any]:
    """How this CPU computes each dtype, what ``forward_dtype: auto`` means on it, and which times choose backends."""
    user, ignored = cpu_tuning.user_table()
    times = f"measured here on {user.date}" if user else f"of instruction sets; {ignored.text}" if ignored else None
    return {
        "dtypes": {
            dtype: {"cpu": instruction_sets.of_library(dtype), "pytorch": instruction_sets.of_pytorch(dtype)}
            for dtype in instruction_sets.DTYPES
        },
        "automatic_dtype": "bfloat16" if instruction_sets.bfloat16_is_fast() else "float32",
        "tuning": times or "of instruction sets; python -m hrm_kernels.tuning --device cpu measures this machine",
    }


def _cpu() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    fields: dict[str, str] = {}  # of the first core
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "model": cpu_tuning.processor(),
        # containers and batch systems may allow fewer cores than the machine has
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": [name for name in ISA if name in flags],
    }


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    capability = getattr(properties, "gcnArchName", None) if torch.version.hip else None
    return {
        "name": properties.name,
        "capability": capability or f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }


def _tool(commands: Sequence[str], get: str) -> dict[str, str | None]:
    found = next(filter(None, map(shutil.which, commands)), None)
    if found is None:
        return {"version": None, "get": get}
    try:
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"version": None, "get": f"{found} exists but does not run ({error})"}
    lines = shown.strip().splitlines() or ["unknown version"]
    # nvcc prints its name and copyright first
    line = next((line for line in lines if "release" in line), lines[0])
    return {"version": line.removeprefix("cmake version ").strip(), "get": get}


def _test_backend(name: str) -> str | None:
    """Compare an op on backend ``name`` with float64. Returns None if they agree, else the failure."""
    device = "cuda" if name in ("cuda", "triton") and torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return _test_module(name, device)
    generator = torch.Generator("cpu").manual_seed(0)
    x, residual = torch.randn(2, 5, 128, generator=generator, dtype=torch.float32, device="cpu")
    total = x.double() + residual.double()
    expected = total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    try:
        with hrm_kernels.use_backend(name):
            result = hrm_kernels.add_rms_norm(x.to(device), residual.to(device), 1e-5)
        error = (result.cpu().double() - expected).abs().max().item()
    except Exception as exception:  # of any type: the report shows it
        return f"add_rms_norm raised {type(exception).__name__}: {exception}"
    # 2**-20: a few roundings of float32 (2**-24) on values up to 4
    return None if error < 4 * 2**-20 else f"add_rms_norm differs from float64 by {error:.2g}"


def _test_module(name: str, device: str) -> str | None:
    """As :func:`_test_backend`, with one block in bfloat16, which runs the largest CUDA kernel."""
    options: Any = {"generator": torch.Generator("cpu").manual_seed(0), "dtype": torch.float32, "device": "cpu"}
    shapes = ((384, 128), (128, 128), (256, 128), (128, 128))
    weights = [torch.randn(shape, **options) * shape[1] ** -0.5 for shape in shapes]
    states = torch.randn(2, 1, 17, 128, **options)

    def run(backend: str, dtype: torch.dtype) -> torch.Tensor:
        block = hrm_kernels.BlockWeights(*(weight.to(device, torch.bfloat16).to(dtype) for weight in weights))
        z, injection = states.to(device, torch.bfloat16).to(dtype)
        with hrm_kernels.use_backend(backend), torch.no_grad():
            return hrm_kernels.reasoning_module(z, injection, [block], None, None, 2).double()

    try:
        exact = run("reference", torch.float64)
        error, plain = ((run(backend, torch.bfloat16) - exact).abs().max().item() for backend in (name, "reference"))
    except Exception as exception:
        return f"reasoning_module raised {type(exception).__name__}: {exception}"
    # the bound of every op: twice PyTorch's error in this dtype, plus a rounding of values up to 4
    return None if error <= 2 * plain + 4 * 2**-8 else f"reasoning_module differs from float64 by {error:.2g}"


def render(report: dict[str, Any]) -> str:
    """Format the result of :func:`report` as plain text."""
    rows: list[str] = []

    def section(title: str, entries: dict[str, str]) -> None:
        rows.append(f"\n{title}" if rows else title)
        rows.extend(f"  {name:<15} {text}" for name, text in entries.items())

    section("Versions", {name: text or "not installed" for name, text in report["versions"].items()})
    cpu = report["cpu"]
    isa = " ".join(cpu["isa"]) or "no known vector instructions"
    gpus = {
        f"GPU {index}": f"{gpu['name']}, capability {gpu['capability']}, {gpu['memory_gib']} GiB"
        for index, gpu in enumerate(report["gpus"])
    }
    section(
        "Devices",
        {
            "CPU": f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads, {isa}",
            **(gpus or {"GPU": "none that torch can use"}),
        },
    )
    computes = report["computes"]
    section(
        "Arithmetic on the CPU",
        {
            **{
                dtype: f"cpu backend: {sets['cpu'] or 'no library'}, PyTorch: {sets['pytorch']}"
                for dtype, sets in computes["dtypes"].items()
            },
            "automatic dtype": f"{computes['automatic_dtype']} (forward_dtype: auto, and models that are loaded)",
            "tuning tables": computes["tuning"],
        },
    )
    section(
        "Tools (to build from source)",
        {name: tool["version"] or f"not found: {tool['get']}" for name, tool in report["tools"].items()},
    )

    def usability(name: str, reason: str | None) -> str:
        if reason is not None:
            return f"no: {reason}"
        failure = report["self_tests"][name]
        return "yes, self-test passed" if failure is None else f"SELF-TEST FAILED: {failure}"

    section(
        "Native libraries", {name: usability(f"native {name}", reason) for name, reason in report["native"].items()}
    )
    section("Backends", {name: usability(name, reason) for name, reason in report["backends"].items()})
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report. Returns the exit code: 1 if a self-test fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m hrm_kernels.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    as_json = parser.parse_args(arguments).json
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of torch about an unusable driver would precede the JSON
        result = report()
    print(json.dumps(result, indent=2) if as_json else render(result))
    return 0 if all(failure is None for failure in result["self_tests"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What a run records about its machine."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


def output_of(*command: str) -> str:
    """Standard output of a command; "" if it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def clocks() -> str:
    fields = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"
    return output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def describe(device: str) -> dict[str, Any]:
    """Device, versions and clocks."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "triton", "pytest"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    if device != "cuda":
        return {"device": platform.processor() or platform.machine(), "versions": versions, "clocks": {}}
    properties = torch.cuda.get_device_properties(0)
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2": properties.L2_cache_size,
        "versions": versions | {"driver": driver, "cuda": torch.version.cuda or torch.version.hip},
        "clocks": {"before": clocks()},
    }

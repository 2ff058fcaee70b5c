"""What this CPU has, and which goals apply to it."""

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch

from bench.gpu.machine import output_of
from bench.processes import ROOT
from hrm_kernels import doctor, native

NO_AMX = "this CPU has no AMX"


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        has_amx: tiles multiply bfloat16, so the goals for AMX apply.
        has_bfloat16: PyTorch computes bfloat16 with the CPU's vectors. Without it one call of a model takes many
            times as long as in float32, so whole models are not timed in it.
    """

    has_amx: bool
    has_bfloat16: bool

    @property
    def no_amx(self) -> str | None:
        return None if self.has_amx else NO_AMX


def describe() -> dict[str, Any]:
    """CPU, instruction sets, versions, threads, commit and date of this run."""
    report = doctor.report()
    module = native.load("cpu").module
    return {
        "cpu": report["cpu"],
        "instruction_set": _of(module, "instruction_set"),
        "bfloat16_instruction_set": _of(module, "bfloat16_instruction_set"),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_bfloat16": _torch_has_bfloat16(),
        "versions": report["versions"],
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "cpu_backend": report["backends"]["cpu"] or "usable",
        "commit": output_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "has_changes": bool(output_of("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }


def machine_of(described: dict[str, Any]) -> Machine:
    return Machine("amx_bf16" in described["cpu"]["isa"], described["torch_bfloat16"])


def title(described: dict[str, Any]) -> str:
    """CPU, instruction sets, versions and date in one line."""
    cpu = described["cpu"]
    sets = f"kernels {described['instruction_set']}, bfloat16 {described['bfloat16_instruction_set']}"
    return (
        f"{cpu['model']}, {described['threads']} threads ({' '.join(cpu['isa'])}); {sets}; "
        f"torch {described['versions']['torch']} ({described['torch_capability']}); {described['date']}, "
        f"commit {described['commit']}{' and changes' if described['has_changes'] else ''}"
    )


def _of(module: Any, function: str) -> str | None:
    """What the library says; None if it is not there, or from before it had the function."""
    try:
        return str(getattr(module, function)())
    except AttributeError:
        return None


def _torch_has_bfloat16() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())

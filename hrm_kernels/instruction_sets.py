"""Which instructions compute float32 and bfloat16 on this CPU: in the ``cpu`` backend, and in PyTorch."""

import functools

import torch

from hrm_kernels import native
from hrm_kernels.autodiff import traced_as_constant

SETS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")
"""Instruction sets, narrow to wide. The last two multiply bfloat16; the others compute it in float32."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The dtypes of the ``cpu`` backend."""


def of_library(dtype: str) -> str | None:
    """The instruction set with which the ``cpu`` backend computes ``dtype``; None without its library."""
    module = native.load("cpu").module
    if module is None:
        return None
    return str(module.bfloat16_instruction_set() if dtype == "bfloat16" else module.instruction_set())


@functools.cache
def of_pytorch(dtype: str) -> str:
    """The instruction set with which PyTorch computes products of ``dtype``."""
    if dtype == "bfloat16" and _multiplies_bfloat16():
        return "amx" if _has("_is_amx_tile_supported") and _has("_init_amx") else "avx512_bf16"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return "avx512" if capability.startswith("avx512") else "avx2" if capability.startswith("avx2") else "portable"


@traced_as_constant
def pytorch_lacks_bfloat16() -> bool:
    """Whether PyTorch multiplies bfloat16 without instructions for it: 5 to 80 times as slowly as float32."""
    return of_pytorch("bfloat16") not in ("avx512_bf16", "amx")


def _multiplies_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and _has("_is_avx512_bf16_supported")


def _has(name: str) -> bool:
    """What a function of torch.cpu says; versions of torch have different ones. ``_init_amx`` asks the kernel."""
    function = getattr(torch.cpu, name, None)
    return function is not None and bool(function())


def bfloat16_is_fast() -> bool:
    """Whether the ``cpu`` backend multiplies bfloat16 in hardware, faster than it computes float32."""
    return of_library("bfloat16") in ("avx512_bf16", "amx")

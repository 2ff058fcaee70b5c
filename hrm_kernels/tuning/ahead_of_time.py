"""Compiling every Triton kernel ahead of time, for every target, without a GPU."""

from dataclasses import dataclass, field
from typing import Any

import torch

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as Triton's signatures write it."""
    return _NAMES[dtype]


@dataclass(frozen=True)
class Case:
    """One kernel with one launch configuration.

    Attributes:
        kernel: the ``triton.jit`` function.
        signature: types of the arguments that are no constants, by name ("*bf16", "i32", "fp32"). Pointers and integers
            are compiled as divisible by 16, as launches with aligned tensors of the published sizes are.
        constants: values of the ``tl.constexpr`` arguments.
        num_warps, num_stages: of the launch.
        matrix: the kernel is meant to use tensor cores.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    matrix: bool = False

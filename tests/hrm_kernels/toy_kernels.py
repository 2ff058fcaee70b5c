"""Kernels that the ahead-of-time gate must report, each for one reason; used by test_ahead_of_time.py."""

import triton
import triton.language as tl

from hrm_kernels.tuning.ahead_of_time import Case


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, at < n, 0.0), at < n)


@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(left, right, input_precision="ieee"))


@triton.jit
def many_values(x, y, BLOCK: tl.constexpr):
    """All values stay live until the end, and exceed the registers of a thread."""
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.debug_barrier()
    total = tl.load(x + BLOCK + at)
    tl.debug_barrier()
    tl.store(y + at, value + total)
    tl.store(y + BLOCK + at, value * total)


@triton.jit
def broken(x):
    tl.store(x, tl.arange(0, 3))


def spills() -> list[Case]:
    return [Case(many_values, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 32768})]


def too_much_shared() -> list[Case]:
    types = {"a": "*bf16", "b": "*bf16", "c": "*fp32"}
    return [Case(product, types, {"M": 128, "N": 128, "K": 512}, num_warps=8, matrix=True)]


def no_tensor_cores() -> list[Case]:
    return [Case(product, {"a": "*fp32", "b": "*fp32", "c": "*fp32"}, {"M": 16, "N": 16, "K": 16}, matrix=True)]


def not_compiling() -> list[Case]:
    return [Case(broken, {"x": "*fp32"})]


def too_many_threads() -> list[Case]:
    return [Case(copy, {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": 2048}, num_warps=32, targets=("gfx942",))]


def fine() -> list[Case]:
    types, sizes = {"x": "*bf16", "y": "*bf16", "n": "i32"}, {"BLOCK": 1024}
    return [
        Case(copy, types, sizes, targets=("80", "gfx942")),
        Case(copy, types, sizes, targets=("80",), unaligned=("x", "n")),
        Case(
            product,
            {"a": "*bf16", "b": "*bf16", "c": "*fp32"},
            {"M": 64, "N": 64, "K": 64},
            matrix=True,
            targets=("90", "gfx942"),
        ),
    ]

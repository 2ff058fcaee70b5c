"""A program computes a block of columns of one row: it reads gate and up once and writes the result once."""

import torch
import triton
import triton.language as tl

from hrm_kernels.backends import launcher
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name

BLOCK_I = 1024  # columns of a program: 4 warps move 8 elements a thread, one 16-byte load of bfloat16 each
NUM_WARPS = 4


@triton.jit
def forward_kernel(gate_up, out, I: tl.constexpr, BLOCK_I: tl.constexpr):
    """Row program_id(0), columns of block program_id(1): out = silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    gate = tl.load(gate_up + row * 2 * I + i, i < I, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * I + I + i, i < I, 0.0).to(tl.float32)
    tl.store(out + row * I + i, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), i < I)


@triton.jit
def backward_kernel(dout, gate_up, dgate_up, out, I: tl.constexpr, AGAIN: tl.constexpr, BLOCK_I: tl.constexpr):
    """Row program_id(0), columns of block program_id(1): [dgate | dup], with sigmoid and silu computed again.

    With AGAIN also out, as forward computed it: gate and up are at hand.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    at = row * 2 * I + i
    g = tl.load(dout + row * I + i, i < I, 0.0).to(tl.float32)
    gate = tl.load(gate_up + at, i < I, 0.0).to(tl.float32)
    up = tl.load(gate_up + at + I, i < I, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    dgate = g * up * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(dgate_up + at, dgate.to(dgate_up.dtype.element_ty), i < I)
    tl.store(dgate_up + at + I, (g * gate * sigmoid).to(dgate_up.dtype.element_ty), i < I)
    if AGAIN:
        tl.store(out + row * I + i, (gate * sigmoid * up).to(out.dtype.element_ty), i < I)


@launcher(
    "triton_swiglu(Tensor gate_up) -> Tensor",
    lambda gate_up: gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2),
)
def forward(gate_up: torch.Tensor) -> torch.Tensor:
    """``[..., 2 I]`` contiguous -> ``[..., I]``."""
    inner = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], inner)
    if out.numel():
        grid = (out.numel() // inner, triton.cdiv(inner, BLOCK_I))
        forward_kernel[grid](gate_up, out, inner, BLOCK_I, num_warps=NUM_WARPS, enable_fp_fusion=True)
    return out


@launcher(
    "triton_swiglu_backward(Tensor dout, Tensor gate_up, bool again=False) -> (Tensor, Tensor)",
    lambda dout, gate_up, again=False: _gradients(dout, gate_up, again),
)
def backward(dout: torch.Tensor, gate_up: torch.Tensor, again: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of gate_up, and with ``again`` the result of :func:`forward`, else empty; all contiguous."""
    dgate_up, out = _gradients(dout, gate_up, again)
    inner = gate_up.shape[-1] // 2
    if dout.numel():
        grid = (dout.numel() // inner, triton.cdiv(inner, BLOCK_I))
        backward_kernel[grid](
            dout, gate_up, dgate_up, out, inner, again, BLOCK_I, num_warps=NUM_WARPS, enable_fp_fusion=True
        )
    return dgate_up, out


def _gradients(dout: torch.Tensor, gate_up: torch.Tensor, again: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(gate_up), dout.new_empty(dout.shape if again else (0,))


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles."""
    result = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        p, sizes = f"*{dtype_name(dtype)}", {"I": 1536, "BLOCK_I": BLOCK_I}
        result.append(Case(forward_kernel, {"gate_up": p, "out": p}, sizes, NUM_WARPS))
        for again in (False, True):
            signature = {"dout": p, "gate_up": p, "dgate_up": p, "out": p}
            result.append(Case(backward_kernel, signature, {**sizes, "AGAIN": again}, NUM_WARPS))
    return result

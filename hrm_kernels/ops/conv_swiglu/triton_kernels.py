"""A program walks a run of positions of one row, a block of channels at a time, and keeps what the next one needs.

Each input is read once and each result written once, but for the position before a run, and for the backward the one
after it, which are computed again.
"""

import torch
import triton
import triton.language as tl

from hrm_kernels.backends import launcher
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name

RUN = 16  # positions of a program: 1/16 is read again; 8 x 82 positions of 1536 channels are 144 programs
BLOCK_I = 512  # channels of a program: 2 warps move 8 elements a thread, one 16-byte load of bfloat16 each
NUM_WARPS = 2


@triton.jit
def _taps(weight, bias, i, mask):
    before = tl.load(weight + 2 * i, mask, 0.0).to(tl.float32)
    now = tl.load(weight + 2 * i + 1, mask, 0.0).to(tl.float32)
    return before, now, tl.load(bias + i, mask, 0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    gate_up, weight, bias, out, positions, runs, I: tl.constexpr, RUN: tl.constexpr, BLOCK_I: tl.constexpr
):
    """Run program_id(0), channels of block program_id(1): silu(before * y[t - 1] + now * y[t] + bias)."""
    row = (tl.program_id(0) // runs).to(tl.int64) * positions  # of its first position
    first = tl.program_id(0) % runs * RUN
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    before, now, add = _taps(weight, bias, i, i < I)
    mask = i < tl.where(first > 0, I, 0)
    at = (row + first - 1) * 2 * I + i
    gate = tl.load(gate_up + at, mask, 0.0).to(tl.float32)
    y = gate / (1 + tl.exp(-gate)) * tl.load(gate_up + at + I, mask, 0.0).to(tl.float32)
    for t in range(first, tl.minimum(first + RUN, positions)):
        at = (row + t) * 2 * I + i
        gate = tl.load(gate_up + at, i < I, 0.0).to(tl.float32)
        y_now = gate / (1 + tl.exp(-gate)) * tl.load(gate_up + at + I, i < I, 0.0).to(tl.float32)
        c = before * y + now * y_now + add
        tl.store(out + (row + t) * I + i, (c / (1 + tl.exp(-c))).to(out.dtype.element_ty), i < I)
        y = y_now


@triton.jit
def backward_kernel(
    dout, gate_up, weight, bias, dgate_up, sums, positions, runs, I: tl.constexpr, RUN: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Run program_id(0), channels of block program_id(1): [dgate | dup] of its positions, and the run's sums.

    With c the sum inside the last silu: dc[t] = dout[t] silu'(c[t]) and dy[t] = now dc[t] + before dc[t + 1], so that
    position t completes the gradients of t - 1. sums [runs, 3, I]: of dc[t] y[t - 1], of dc[t] y[t], and of dc[t].
    """
    row = (tl.program_id(0) // runs).to(tl.int64) * positions
    first = tl.program_id(0) % runs * RUN
    last = tl.minimum(first + RUN, positions)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    before, now, add = _taps(weight, bias, i, i < I)
    mask = i < tl.where(first > 0, I, 0)
    at = (row + first - 1) * 2 * I + i
    gate = tl.load(gate_up + at, mask, 0.0).to(tl.float32)
    y = gate / (1 + tl.exp(-gate)) * tl.load(gate_up + at + I, mask, 0.0).to(tl.float32)
    dc = tl.zeros([BLOCK_I], tl.float32)  # of the position before: dgate = dy up slope, dup = dy silu
    silu = dc
    up_slope = dc
    sum_before = dc
    sum_now = dc
    sum_dc = dc
    for t in range(first, last + 1):
        mask = i < tl.where(t < positions, I, 0)
        at = (row + t) * 2 * I + i
        gate = tl.load(gate_up + at, mask, 0.0).to(tl.float32)
        up = tl.load(gate_up + at + I, mask, 0.0).to(tl.float32)
        sigmoid = 1 / (1 + tl.exp(-gate))
        silu_now = gate * sigmoid
        y_now = silu_now * up
        c = before * y + now * y_now + add
        sigmoid_c = 1 / (1 + tl.exp(-c))
        dc_now = tl.load(dout + (row + t) * I + i, mask, 0.0).to(tl.float32)
        dc_now *= sigmoid_c * (1 + c * (1 - sigmoid_c))
        dy = now * dc + before * dc_now
        mask = i < tl.where(t > first, I, 0)
        tl.store(dgate_up + at - 2 * I, (dy * up_slope).to(dgate_up.dtype.element_ty), mask)
        tl.store(dgate_up + at - I, (dy * silu).to(dgate_up.dtype.element_ty), mask)
        counted = tl.where(t < last, dc_now, 0.0)
        sum_before += counted * y
        sum_now += counted * y_now
        sum_dc += counted
        y = y_now
        dc = dc_now
        silu = silu_now
        up_slope = up * sigmoid * (1 + gate * (1 - sigmoid))
    to = sums + tl.program_id(0).to(tl.int64) * 3 * I + i
    tl.store(to, sum_before, i < I)
    tl.store(to + I, sum_now, i < I)
    tl.store(to + 2 * I, sum_dc, i < I)


def _grid(out: torch.Tensor) -> tuple[int, tuple[int, int]]:
    """Runs of a row, and the grid."""
    batch, positions, inner = out.shape
    runs = triton.cdiv(positions, RUN)
    return runs, (batch * runs, triton.cdiv(inner, BLOCK_I))


@launcher(
    "triton_conv_swiglu(Tensor gate_up, Tensor weight, Tensor bias) -> Tensor",
    lambda gate_up, weight, bias: gate_up.new_empty(*gate_up.shape[:2], bias.shape[0]),
)
def forward(gate_up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``[B, S, 2 I]`` contiguous -> ``[B, S, I]``."""
    out = gate_up.new_empty(*gate_up.shape[:2], bias.shape[0])
    if out.numel():
        runs, grid = _grid(out)
        forward_kernel[grid](
            gate_up, weight, bias, out, out.shape[1], runs, out.shape[2], RUN, BLOCK_I, num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out


@launcher(
    "triton_conv_swiglu_backward(Tensor dout, Tensor gate_up, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)",
    lambda dout, gate_up, weight, bias: tuple(torch.empty_like(one) for one in (gate_up, weight, bias)),
)
def backward(
    dout: torch.Tensor, gate_up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of gate_up, weight and bias; all contiguous. The sums of the runs are added in their order."""
    dgate_up = torch.empty_like(gate_up)
    if not dout.numel():
        return dgate_up, torch.zeros_like(weight), torch.zeros_like(bias)
    runs, grid = _grid(dout)
    sums = dout.new_empty(grid[0], 3, dout.shape[2], dtype=torch.float32)
    backward_kernel[grid](
        dout, gate_up, weight, bias, dgate_up, sums, dout.shape[1], runs, dout.shape[2], RUN, BLOCK_I,
        num_warps=NUM_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    total = sums.sum(0)
    return dgate_up, total[:2].t().to(weight.dtype).contiguous(), total[2].to(bias.dtype)


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles."""
    result = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        p, sizes = f"*{dtype_name(dtype)}", {"I": 1536, "RUN": RUN, "BLOCK_I": BLOCK_I}
        counts = {"positions": "i32", "runs": "i32"}
        arguments = {"gate_up": p, "weight": p, "bias": p}
        forward_arguments = {**arguments, "out": p, **counts}
        result.append(Case(forward_kernel, forward_arguments, sizes, NUM_WARPS, unaligned=tuple(counts)))
        backward_arguments = {"dout": p, **arguments, "dgate_up": p, "sums": "*fp32", **counts}
        result.append(Case(backward_kernel, backward_arguments, sizes, NUM_WARPS, unaligned=tuple(counts)))
    return result

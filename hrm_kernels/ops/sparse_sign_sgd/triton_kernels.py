"""One launch for all identifiers: each program finds out whether its identifier has occurred before."""

import torch
import triton
import triton.language as tl

from hrm_kernels.tuning.ahead_of_time import Case, dtype_name

SCAN = 256  # identifiers compared at a time
BLOCK_N = 32  # of a tile of gradients: 4 warps hold 32 elements a thread, of which only equal rows are loaded
BLOCK_D = 128
NUM_WARPS = 4


@triton.jit
def step_kernel(
    weights,
    ids,
    grads,
    lr,
    keep,
    weight_decay,
    N,
    E,
    D: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    SCAN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Occurrence n = program_id(0), columns of block program_id(1), over all identifiers before n, then from n on.

    Only the program of the first occurrence goes on: it sums the gradients of all occurrences, in a fixed order, and
    writes the row. Identifiers that are not one of the E rows are skipped.
    With LR_ON_DEVICE lr is a pointer, and keep is not used: it is 1 - lr * weight_decay.
    """
    n = tl.program_id(0)
    own = tl.load(ids + n)
    earlier = tl.zeros([SCAN], tl.int32)
    start = 0
    while start < n:  # a range with such a bound fails in Triton 3.6's interpreter with NumPy 2.4
        m = start + tl.arange(0, SCAN)
        earlier += ((m < n) & (tl.load(ids + m, m < n, 0) == own)).to(tl.int32)
        start += SCAN
    if (tl.sum(earlier) == 0) & (own >= 0) & (own < E):
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        g = tl.zeros([BLOCK_D], tl.float32)
        start = n
        while start < N:
            m = start + tl.arange(0, BLOCK_N)
            same = (m < N) & (tl.load(ids + m, m < N, 0) == own)
            if tl.max(same.to(tl.int32)) > 0:
                mask = same[:, None] & (d < D)[None, :]
                g += tl.sum(tl.load(grads + m.to(tl.int64)[:, None] * D + d[None, :], mask, 0.0).to(tl.float32), 0)
            start += BLOCK_N
        if LR_ON_DEVICE:
            rate = tl.load(lr).to(tl.float32)
            kept = 1 - rate * weight_decay
        else:
            rate = lr
            kept = keep
        row = weights + own.to(tl.int64) * D + d
        w = tl.load(row, d < D, 0.0).to(tl.float32) * kept - tl.where(g > 0, rate, tl.where(g < 0, -rate, 0.0))
        tl.store(row, w.to(weights.dtype.element_ty), d < D)


def step(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> None:
    """Changes the rows of ``weights`` [E, D] that ``ids`` [N] name; all contiguous."""
    (N, D), on_device = grads.shape, isinstance(lr, torch.Tensor) and lr.device == weights.device
    rate = lr if on_device else float(lr)  # of a tensor on the CPU: nothing to wait for
    keep = 0.0 if on_device else 1 - rate * weight_decay  # in float64
    if grads.numel():
        grid = (N, triton.cdiv(D, BLOCK_D))
        sizes = {"SCAN": SCAN, "BLOCK_N": BLOCK_N, "BLOCK_D": BLOCK_D}
        step_kernel[grid](
            weights,
            ids,
            grads,
            rate,
            keep,
            float(weight_decay),
            N,
            len(weights),
            D,
            on_device,
            **sizes,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
        torch.autograd.graph.increment_version(weights)


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: tables are float32."""
    p = f"*{dtype_name(torch.float32)}"
    sizes = {"D": 512, "SCAN": SCAN, "BLOCK_N": BLOCK_N, "BLOCK_D": BLOCK_D}
    result = []
    for ids in ("*i32", "*i64"):
        for on_device in (False, True):
            arguments = {"weights": p, "ids": ids, "grads": p, "lr": "*fp32" if on_device else "fp32", "keep": "fp32"}
            arguments |= {"weight_decay": "fp32", "N": "i32", "E": "i32"}
            result.append(Case(step_kernel, arguments, {**sizes, "LR_ON_DEVICE": on_device}, NUM_WARPS))
    return result

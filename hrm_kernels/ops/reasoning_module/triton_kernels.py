"""The damping of an update: a program computes a tile of whole rows, and draws their noise in registers."""

from typing import Any

import torch
import triton
import triton.language as tl

from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import launcher
from hrm_kernels.damping import Damping, by_row
from hrm_kernels.damping import damp as reference
from hrm_kernels.ops.add_rms_norm.triton_kernels import tile
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name


@triton.jit
def _wave(y, is_sine):
    """The sine, or the cosine, of ``2 pi (y + 0.5) / 2^23``: of the nearest quarter turn, and the rest by polynomials.

    Those of libdevice keep a table for large angles in memory. Source of the polynomials: Cephes, sinf and cosf.
    """
    quarter = (y + (1 << 20)) >> 21
    x = ((y - (quarter << 21)).to(tl.float32) + 0.5) * (6.283185307179586 / 8388608)
    x2 = x * x
    sine = ((-1.9515295891e-4 * x2 + 8.3321608736e-3) * x2 - 1.6666654611e-1) * x2 * x + x
    cosine = ((2.443315711809948e-5 * x2 - 1.388731625493765e-3) * x2 + 4.166664568298827e-2) * x2 * x2 - 0.5 * x2 + 1
    value = tl.where((quarter % 2 == 1) ^ is_sine, sine, cosine)
    sign = tl.where(is_sine, quarter & 2, (quarter + 1) & 2)
    return tl.where(sign != 0, -value, value)


@triton.jit
def damp_kernel(
    z,
    update,
    out,
    weights,
    seeds,
    steps,
    scale,
    rows,
    S,
    D: tl.constexpr,
    NOISY: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows ``[ROWS, D]`` of ``[B S, D]``: out = (1 - weight) z + weight * update + scale * noise.

    The noise is that of :func:`hrm_kernels.noise`: each element draws its four words and takes two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    at = row[:, None].to(tl.int64) * D + d[None, :]
    mask = (row < rows)[:, None] & (d < D)[None, :]
    batch = row // S
    weight = tl.load(weights + batch, row < rows, 0.0)[:, None]
    old = tl.load(z + at, mask, 0.0).to(tl.float32)
    new = (1 - weight) * old + weight * tl.load(update + at, mask, 0.0).to(tl.float32)
    if NOISY:
        seed = tl.load(seeds + batch, row < rows, 0)[:, None]
        step = tl.load(steps + batch, row < rows, 0)[:, None].to(tl.uint32)
        counter = (d // 64 * 16 + d % 16)[None, :].to(tl.uint32) + tl.zeros([ROWS, BLOCK_D], tl.uint32)
        position = (row % S)[:, None].to(tl.uint32)
        first, second, third, fourth = tl.philox(seed, counter, position, step, tl.zeros([ROWS, BLOCK_D], tl.uint32))
        word = (d % 64 // 16)[None, :]
        u = (tl.where(word < 2, first, third) >> 9).to(tl.int32)
        v = (tl.where(word < 2, second, fourth) >> 9).to(tl.int32)
        radius = tl.sqrt(-2 * tl.log((u.to(tl.float32) + 0.5) * (1.0 / 8388608)))
        new += scale * radius * _wave(v, word % 2 == 1)
    tl.store(out + at, new.to(out.dtype.element_ty), mask)


@launcher(
    "triton_damp(Tensor z, Tensor update, Tensor weights, float noise_scale, Tensor seeds, Tensor steps) -> Tensor",
    lambda z, *rest: torch.empty_like(z),
)
def forward(
    z: torch.Tensor,
    update: torch.Tensor,
    weights: torch.Tensor,
    noise_scale: float,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """The next state of contiguous ``z [B, S, D]``; the rest are the fields of a ``Rows``."""
    out, (_, positions, dim) = torch.empty_like(z), z.shape
    if z.numel():
        rows, config = z.numel() // dim, tile(dim)
        damp_kernel[(triton.cdiv(rows, config["ROWS"]),)](
            z, update, out, weights, seeds, steps, noise_scale, rows, positions, dim, NOISY=noise_scale != 0, **config
        )
    return out


class _Damp(torch.autograd.Function):
    """``apply(z, update, damping)``: one launch; the backward scales the gradient by the weights."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, update: torch.Tensor, damping: Damping) -> torch.Tensor:  # type: ignore[override]
        rows = by_row(damping, z)
        ctx.save_for_backward(z, update, rows.weights)
        ctx.damping = damping
        return forward(z, update, *rows)

    @staticmethod
    @first_order(lambda ctx: (reference, (*ctx.saved_tensors[:2], ctx.damping)))
    def backward(ctx: Any, dout: torch.Tensor) -> Any:  # type: ignore[override]
        weight = ctx.saved_tensors[2].view(-1, 1, 1)
        return ((1 - weight) * dout).to(dout.dtype), (weight * dout).to(dout.dtype), None


def damp(z: torch.Tensor, update: torch.Tensor, damping: Damping | None) -> torch.Tensor:
    """:func:`hrm_kernels.damping.damp` in one launch; ``z`` and ``update`` are ``[B, S, D]``."""
    return update if damping is None else _Damp.apply(z.contiguous(), update.contiguous(), damping)


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: every dtype at the published width."""
    result = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        p, config = f"*{dtype_name(dtype)}", tile(512)
        arguments = {"z": p, "update": p, "out": p, "weights": "*fp32", "seeds": "*i64", "steps": "*i64"}
        arguments |= {"scale": "fp32", "rows": "i32", "S": "i32"}
        for noisy in (False, True):
            sizes = {"D": 512, "NOISY": noisy, "ROWS": config["ROWS"], "BLOCK_D": config["BLOCK_D"]}
            result.append(Case(damp_kernel, arguments, sizes, config["num_warps"]))
    return result

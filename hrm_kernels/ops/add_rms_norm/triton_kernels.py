"""A program computes a tile of whole rows: it reads x and residual once and writes the results once."""

import torch
import triton
import triton.language as tl

from hrm_kernels.backends import launcher
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name


@triton.jit
def forward_kernel(
    x, residual, out, u, rstd, rows, eps, D: tl.constexpr, SAVE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows ``[ROWS, D]``: out = norm(x + residual). With SAVE also u = x + residual and rstd = 1/rms."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    at = row[:, None] * D + d[None, :]
    mask = (row < rows)[:, None] & (d < D)[None, :]
    a = tl.load(x + at, mask, 0.0).to(tl.float32)
    b = tl.load(residual + at, mask, 0.0).to(tl.float32)
    total = (a + b).to(out.dtype.element_ty)  # rounded first, as the published code does
    wide = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)
    tl.store(out + at, (wide * scale[:, None]).to(out.dtype.element_ty), mask)
    if SAVE:
        tl.store(u + at, total, mask)
        tl.store(rstd + row, scale, row < rows)


@triton.jit
def backward_kernel(dout, u, rstd, du, rows, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows ``[ROWS, D]``: with n = u * rstd, du = rstd * (dout - n * mean(dout * n)), for x and for residual."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    at = row[:, None] * D + d[None, :]
    mask = (row < rows)[:, None] & (d < D)[None, :]
    scale = tl.load(rstd + row, row < rows, 0.0)[:, None]
    g = tl.load(dout + at, mask, 0.0).to(tl.float32)
    n = tl.load(u + at, mask, 0.0).to(tl.float32) * scale
    mean = tl.sum(g * n, 1)[:, None] / D
    tl.store(du + at, (scale * (g - n * mean)).to(du.dtype.element_ty), mask)


def tile(D: int) -> dict[str, int]:
    """Rows and warps of a program: 4 warps move 2048 elements, 16 to a thread (two 16-byte loads of bfloat16).

    Wider rows get more warps rather than more elements to a thread, up to 16 warps.
    """
    block = triton.next_power_of_2(D)
    return {"ROWS": max(1, 2048 // block), "BLOCK_D": block, "num_warps": min(16, max(4, block // 512))}


@launcher(
    "triton_add_rms_norm(Tensor x, Tensor residual, float eps, bool save) -> (Tensor, Tensor, Tensor)",
    lambda x, residual, eps, save: _outputs(x, save),
)
def forward(x: torch.Tensor, residual: torch.Tensor, eps: float, save: bool) -> tuple[torch.Tensor, ...]:
    """``(out, u, rstd)`` of contiguous ``[..., D]`` inputs; without ``save`` the last two are empty."""
    out, u, rstd = _outputs(x, save)
    rows, config = x.numel() // x.shape[-1], tile(x.shape[-1])
    if rows:
        forward_kernel[(triton.cdiv(rows, config["ROWS"]),)](
            x, residual, out, u, rstd, rows, eps, x.shape[-1], SAVE=save, **config, enable_fp_fusion=True
        )
    return out, u, rstd


def _outputs(x: torch.Tensor, save: bool) -> tuple[torch.Tensor, ...]:
    rows = x.shape[:-1]
    u, rstd = (x.shape, rows) if save else ((0,), (0,))
    return torch.empty_like(x), x.new_empty(u), x.new_empty(rstd, dtype=torch.float32)


@launcher(
    "triton_add_rms_norm_backward(Tensor dout, Tensor u, Tensor rstd) -> Tensor",
    lambda dout, u, rstd: torch.empty_like(u),
)
def backward(dout: torch.Tensor, u: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """The gradient of x, which is also that of residual; all contiguous."""
    du = torch.empty_like(u)
    rows, config = rstd.numel(), tile(u.shape[-1])
    if rows:
        backward_kernel[(triton.cdiv(rows, config["ROWS"]),)](
            dout, u, rstd, du, rows, u.shape[-1], **config, enable_fp_fusion=True
        )
    return du


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: every dtype at the published widths."""
    result = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for D in (128, 512, 768):
            p, config = f"*{dtype_name(dtype)}", tile(D)
            sizes = {"D": D, "ROWS": config["ROWS"], "BLOCK_D": config["BLOCK_D"]}
            arguments = {"x": p, "residual": p, "out": p, "u": p, "rstd": "*fp32", "rows": "i32", "eps": "fp32"}
            for save in (False, True):
                result.append(Case(forward_kernel, arguments, {**sizes, "SAVE": save}, config["num_warps"]))
            arguments = {"dout": p, "u": p, "rstd": "*fp32", "du": p, "rows": "i32"}
            result.append(Case(backward_kernel, arguments, sizes, config["num_warps"]))
    return result

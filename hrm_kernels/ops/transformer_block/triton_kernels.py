"""Matrix products with the block's pointwise steps in their epilogues: five launches a block, without gradients.

For few rows there are also products with the whole norm inside, :func:`linear_norm`.

This RMSNorm has no weight, so 1/rms is a scale of rows, which commutes with the next product. A block therefore passes
on ``u = x + sublayer`` with the sums of u² over column tiles, and the kernel that reads u scales its rows:
qkv = rstd * (u @ Wqkv^T); a = attention(qkv); u1 = rstd * u + a @ Wo^T; h = swiglu(rstd1 * (u1 @ Wgu^T));
u2 = rstd1 * u1 + h @ Wd^T. RoPE stays in the attention kernel, which holds q and k in registers anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hrm_kernels.backends import launcher
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name


@dataclass(frozen=True)
class Tile:
    """Launch configuration of a product ``[M, K] @ [N, K]^T``."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


PRODUCT = Tile(128, 128, 64, 8, 3)  # 3 stages of 2 x 16 KB fit the 99 KB of consumer GPUs; 8 warps share 128 x 128 sums
SWIGLU = Tile(128, 64, 64, 8, 3)  # gate and up tiles side by side: the same sums and memory as PRODUCT
FLOAT32 = Tile(64, 64, 32, 4, 2)  # four times the bytes of bfloat16 products, at an eighth of the rate
FLOAT32_SWIGLU = Tile(64, 32, 32, 4, 2)
SMALL = Tile(32, 64, 64, 4, 4)  # few rows: more programs, deep in flight, because each waits for its weights
SMALL_SWIGLU = Tile(32, 32, 64, 8, 4)  # 4 warps spill with Triton 3.9
ROW = Tile(16, 512, 32, 8, 2)  # BLOCK_N is the whole row; 16 is the least a matrix instruction takes


def tile(dtype: torch.dtype, swiglu: bool, small: bool = False) -> Tile:
    """The configuration for a dtype, and for ``small`` numbers of rows."""
    if dtype is torch.float32:
        return FLOAT32_SWIGLU if swiglu else FLOAT32
    if small:
        return SMALL_SWIGLU if swiglu else SMALL
    return SWIGLU if swiglu else PRODUCT


@triton.jit
def _rstd(sums, m, M, eps, D: tl.constexpr, TILES: tl.constexpr, BLOCK_TILES: tl.constexpr):
    """1/rms of rows ``m [BLOCK_M]`` from the sums of squares of their column tiles, ``sums [M, TILES]``."""
    t = tl.arange(0, BLOCK_TILES)
    parts = tl.load(sums + m[:, None] * TILES + t[None, :], (m < M)[:, None] & (t < TILES)[None, :], 0.0)
    return tl.rsqrt(tl.sum(parts, 1) / D + eps)


@triton.jit
def _product(
    x,
    w,
    m,
    n,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows m of x ``[M, K]`` times rows n of w ``[N, K]``: ``[BLOCK_M, BLOCK_N]``, in steps of BLOCK_K.

    The sums are float32, those of int8 int32.
    """
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + m[:, None].to(tl.int64) * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
        b = tl.load(w + n[None, :] * K + k[:, None], (n < N)[None, :] & (k < K)[:, None], 0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee", out_dtype=sums.dtype)
    return sums


@triton.jit
def _scaled(y, scales, w_scales, m, n, M, N):
    """The product y ``[BLOCK_M, BLOCK_N]`` of 8-bit matrices with the scales of rows m of x and rows n of w."""
    of_rows, of_columns = tl.load(scales + m, m < M, 0.0), tl.load(w_scales + n, n < N, 0.0)
    return y.to(tl.float32) * (of_rows[:, None] * of_columns[None, :])


@triton.jit
def _tile(N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows, columns and column tile of program_id(0). The tiles of a row are next to each other: they share rows of x.

    Then x is read from memory once: the tiles of its rows run side by side, and the weights stay in the L2 cache.
    """
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    at = tl.program_id(0) % TILES_N
    m = tl.program_id(0) // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
    return m, at * BLOCK_N + tl.arange(0, BLOCK_N), at


@triton.jit
def linear_kernel(
    x,
    w,
    sums,
    out,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    scales=None,
    w_scales=None,
):
    """Tile program_id(0) of out = rstd * (x @ w^T); TILES 0: rows of x are not scaled. In 8 bits with both scales."""
    m, n, _ = _tile(N, BLOCK_M, BLOCK_N)
    y = _product(x, w, m, n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    if scales is not None:
        y = _scaled(y, scales, w_scales, m, n, M, N)
    if TILES > 0:
        y *= _rstd(sums, m, M, eps, K, TILES, BLOCK_TILES)[:, None]
    at = m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])


@triton.jit
def linear_swiglu_kernel(
    x,
    w,
    sums,
    out,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    scales=None,
    w_scales=None,
):
    """Tile of out ``[M, N]`` = silu(gate) * up with [gate | up] = rstd * (x @ w^T), w ``[2 N, K]``: two products."""
    m, n, _ = _tile(N, BLOCK_M, BLOCK_N)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), gate.dtype)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + m[:, None].to(tl.int64) * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
        at = n[None, :] * K + k[:, None]
        mask = (n < N)[None, :] & (k < K)[:, None]
        gate = tl.dot(a, tl.load(w + at, mask, 0.0), gate, input_precision="ieee", out_dtype=gate.dtype)
        up = tl.dot(a, tl.load(w + N * K + at, mask, 0.0), up, input_precision="ieee", out_dtype=gate.dtype)
    if scales is not None:
        gate = _scaled(gate, scales, w_scales, m, n, M, N)
        up = _scaled(up, scales, w_scales + N, m, n, M, N)
    if TILES > 0:
        scale = _rstd(sums, m, M, eps, K, TILES, BLOCK_TILES)[:, None]
        gate *= scale
        up *= scale
    y = gate * tl.sigmoid(gate) * up
    at = m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])


@triton.jit
def linear_residual_kernel(
    x,
    w,
    residual,
    sums,
    out,
    out_sums,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    scales=None,
    w_scales=None,
):
    """Tile of out ``[M, N]`` = rstd * residual + x @ w^T, and its rows' sums of squares for the next rstd."""
    m, n, column_tile = _tile(N, BLOCK_M, BLOCK_N)
    y = _product(x, w, m, n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    if scales is not None:
        y = _scaled(y, scales, w_scales, m, n, M, N)
    at = m[:, None].to(tl.int64) * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    r = tl.load(residual + at, mask, 0.0).to(tl.float32)
    if TILES > 0:
        r *= _rstd(sums, m, M, eps, N, TILES, BLOCK_TILES)[:, None]
    u = (r + y).to(out.dtype.element_ty)
    tl.store(out + at, u, mask)
    wide = tl.where(mask, u.to(tl.float32), 0.0)
    tl.store(out_sums + m * ((N + BLOCK_N - 1) // BLOCK_N) + column_tile, tl.sum(wide * wide, 1), m < M)


@triton.jit
def linear_norm_kernel(
    x,
    w,
    residual,
    out,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows program_id(0) of out ``[M, N]`` = rms_norm(residual + x @ w^T): a program has whole rows, N <= BLOCK_N."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    y = _product(x, w, m, n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    at = m[:, None].to(tl.int64) * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    u = (tl.load(residual + at, mask, 0.0).to(tl.float32) + y).to(out.dtype.element_ty).to(tl.float32)
    u = tl.where(mask, u, 0.0)
    u *= tl.rsqrt(tl.sum(u * u, 1) / N + eps)[:, None]
    tl.store(out + at, u.to(out.dtype.element_ty), mask)


@triton.jit
def normalize_kernel(
    u,
    sums,
    out,
    M,
    eps,
    D: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows program_id(0) of out = rstd * u: the deferred norm of the last block."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    at = m[:, None].to(tl.int64) * D + d[None, :]
    mask = (m < M)[:, None] & (d < D)[None, :]
    scale = _rstd(sums, m, M, eps, D, TILES, BLOCK_TILES)[:, None]
    tl.store(out + at, (tl.load(u + at, mask, 0.0).to(tl.float32) * scale).to(out.dtype.element_ty), mask)


def _tiles(sums: torch.Tensor | None) -> dict[str, int]:
    count = 0 if sums is None else sums.shape[1]
    return {"TILES": count, "BLOCK_TILES": triton.next_power_of_2(max(count, 1))}


def _launch(kernel, x, w, arrays, N, sums, eps, config: Tile, scales: dict[str, torch.Tensor]) -> None:
    M, K = x.shape
    grid = (triton.cdiv(M, config.BLOCK_M) * triton.cdiv(N, config.BLOCK_N),)
    blocks = {"BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N, "BLOCK_K": config.BLOCK_K}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    kernel[grid](x, w, *arrays, M, eps, N=N, K=K, **_tiles(sums), **blocks, **options, **scales)


def launch_linear(x, w, sums, out, eps: float, config: Tile, **scales: torch.Tensor) -> None:
    """Write :func:`linear` to out; ``scales`` and ``w_scales`` are those of 8-bit matrices."""
    arrays = (out if sums is None else sums, out)  # without sums the pointer is not read
    _launch(linear_kernel, x, w, arrays, out.shape[1], sums, eps, config, scales)


def launch_swiglu(x, w, sums, out, eps: float, config: Tile, **scales: torch.Tensor) -> None:
    """Write :func:`linear_swiglu` to out."""
    arrays = (out if sums is None else sums, out)
    _launch(linear_swiglu_kernel, x, w, arrays, out.shape[1], sums, eps, config, scales)


def launch_residual(x, w, residual, sums, out, out_sums, eps: float, config: Tile, **scales: torch.Tensor) -> None:
    """Write :func:`linear_residual` to out and out_sums."""
    arrays = (residual, residual if sums is None else sums, out, out_sums)
    _launch(linear_residual_kernel, x, w, arrays, out.shape[1], sums, eps, config, scales)


@launcher(
    "triton_linear(Tensor x, Tensor w, Tensor? sums, float eps, bool small=False) -> Tensor",
    lambda x, w, sums, eps, small=False: x.new_empty(x.shape[0], w.shape[0]),
)
def linear(
    x: torch.Tensor, w: torch.Tensor, sums: torch.Tensor | None, eps: float, small: bool = False
) -> torch.Tensor:
    """``x [M, K] @ w [N, K]^T``, with the rows of x scaled by 1/rms if their sums of squares are passed."""
    out = x.new_empty(x.shape[0], w.shape[0])
    if x.shape[0]:
        launch_linear(x, w, sums, out, eps, tile(x.dtype, False, small))
    return out


@launcher(
    "triton_linear_swiglu(Tensor x, Tensor w, Tensor? sums, float eps, bool small=False) -> Tensor",
    lambda x, w, sums, eps, small=False: x.new_empty(x.shape[0], w.shape[0] // 2),
)
def linear_swiglu(
    x: torch.Tensor, w: torch.Tensor, sums: torch.Tensor | None, eps: float, small: bool = False
) -> torch.Tensor:
    """``swiglu(x [M, K] @ w [2 I, K]^T)``, the rows of x scaled as in :func:`linear`."""
    out = x.new_empty(x.shape[0], w.shape[0] // 2)
    if x.shape[0]:
        launch_swiglu(x, w, sums, out, eps, tile(x.dtype, True, small))
    return out


@launcher(
    "triton_linear_residual(Tensor x, Tensor w, Tensor residual, Tensor? sums, float eps, bool small=False) "
    "-> (Tensor, Tensor)",
    lambda x, w, residual, sums, eps, small=False: _residual_outputs(residual, small),
)
def linear_residual(
    x: torch.Tensor,
    w: torch.Tensor,
    residual: torch.Tensor,
    sums: torch.Tensor | None,
    eps: float,
    small: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``u = residual + x [M, K] @ w [N, K]^T`` (residual ``[M, N]`` scaled by its 1/rms), and u's sums of squares."""
    out, out_sums = _residual_outputs(residual, small)
    if x.shape[0]:
        launch_residual(x, w, residual, sums, out, out_sums, eps, tile(x.dtype, False, small))
    return out, out_sums


def _residual_outputs(residual: torch.Tensor, small: bool) -> tuple[torch.Tensor, torch.Tensor]:
    M, N = residual.shape
    tiles = triton.cdiv(N, tile(residual.dtype, False, small).BLOCK_N)
    return residual.new_empty(M, N), residual.new_empty(M, tiles, dtype=torch.float32)


@launcher(
    "triton_linear_norm(Tensor x, Tensor w, Tensor residual, float eps) -> Tensor",
    lambda x, w, residual, eps: residual.new_empty(residual.shape),
)
def linear_norm(x: torch.Tensor, w: torch.Tensor, residual: torch.Tensor, eps: float) -> torch.Tensor:
    """``rms_norm(residual + x [M, K] @ w [N, K]^T)`` for N up to 512 and few rows: see :func:`fits_a_row`."""
    (M, K), N = x.shape, w.shape[0]
    out = residual.new_empty(M, N)
    if M:
        sizes = {"BLOCK_M": ROW.BLOCK_M, "BLOCK_N": ROW.BLOCK_N, "BLOCK_K": ROW.BLOCK_K}
        options = {"num_warps": ROW.num_warps, "num_stages": ROW.num_stages, "enable_fp_fusion": True}
        linear_norm_kernel[(triton.cdiv(M, ROW.BLOCK_M),)](x, w, residual, out, M, eps, N=N, K=K, **sizes, **options)
    return out


def fits_a_row(x: torch.Tensor) -> bool:
    """Whether :func:`linear_norm` is for hidden states like ``x [M, D]``: more rows would spill or starve."""
    return x.dtype is not torch.float32 and x.shape[0] <= 2 * ROW.BLOCK_M and 256 < x.shape[1] <= ROW.BLOCK_N


@launcher(
    "triton_normalize(Tensor u, Tensor sums, float eps) -> Tensor",
    lambda u, sums, eps: u.new_empty(u.shape),
)
def normalize(u: torch.Tensor, sums: torch.Tensor, eps: float) -> torch.Tensor:
    """``u [M, D]`` with its rows scaled by their 1/rms."""
    M, D = u.shape
    out, block = u.new_empty(M, D), triton.next_power_of_2(D)
    if M:
        rows = max(1, 2048 // block)  # as in add_rms_norm
        normalize_kernel[(triton.cdiv(M, rows),)](
            u, sums, out, M, eps, D, **_tiles(sums), BLOCK_M=rows, BLOCK_D=block, num_warps=4, enable_fp_fusion=True
        )
    return out


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: the published block in every dtype."""
    result: list[Case] = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        result += _cases(dtype, D=512, inner=1536)
    return result


def _cases(dtype: torch.dtype, D: int, inner: int) -> Sequence[Case]:
    p, matrix = f"*{dtype_name(dtype)}", dtype is not torch.float32
    result = []
    for small in (False, True) if matrix else (False,):
        tiles = triton.cdiv(D, tile(dtype, False, small).BLOCK_N)
        for kernel, swiglu, N, K, scaled, arrays in (
            (linear_kernel, False, 3 * D, D, 0, ("sums", "out")),
            (linear_kernel, False, 3 * D, D, tiles, ("sums", "out")),
            (linear_swiglu_kernel, True, inner, D, tiles, ("sums", "out")),
            (linear_residual_kernel, False, D, D, tiles, ("residual", "sums", "out", "out_sums")),
            (linear_residual_kernel, False, D, inner, tiles, ("residual", "sums", "out", "out_sums")),
        ):
            config = tile(dtype, swiglu, small)
            signature = {"x": p, "w": p} | {name: "*fp32" if "sums" in name else p for name in arrays}
            if scaled == 0:
                signature["sums"] = p
            constants = {"N": N, "K": K, "TILES": scaled, "BLOCK_TILES": triton.next_power_of_2(max(scaled, 1))}
            constants |= {"BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N, "BLOCK_K": config.BLOCK_K}
            signature |= {"M": "i32", "eps": "fp32"}
            result.append(Case(kernel, signature, constants, config.num_warps, config.num_stages, matrix))
        constants = {"D": D, "TILES": tiles, "BLOCK_TILES": tiles, "BLOCK_M": 4, "BLOCK_D": 512}
        result.append(Case(normalize_kernel, {"u": p, "sums": "*fp32", "out": p, "M": "i32", "eps": "fp32"}, constants))
    if matrix:
        signature = {"x": p, "w": p, "residual": p, "out": p, "M": "i32", "eps": "fp32"}
        sizes = {"BLOCK_M": ROW.BLOCK_M, "BLOCK_N": ROW.BLOCK_N, "BLOCK_K": ROW.BLOCK_K}
        for K in (D, inner):
            constants = {"N": D, "K": K, **sizes}
            result.append(Case(linear_norm_kernel, signature, constants, ROW.num_warps, ROW.num_stages, True))
        # without the deferred scale, which the norm inside leaves nothing to do for
        signature = {"x": p, "w": p, "sums": p, "out": p, "M": "i32", "eps": "fp32"}
        constants = {"N": inner, "K": D, "TILES": 0, "BLOCK_TILES": 1}
        config = SMALL_SWIGLU
        constants |= {"BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N, "BLOCK_K": config.BLOCK_K}
        result.append(Case(linear_swiglu_kernel, signature, constants, config.num_warps, config.num_stages, True))
    return result


KERNELS = {"linear": linear_kernel, "swiglu": linear_swiglu_kernel, "residual": linear_residual_kernel}

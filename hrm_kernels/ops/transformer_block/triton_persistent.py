"""The products of :mod:`triton_kernels` for many rows, on GPUs with tensor descriptors and warp groups (sm_90).

One program per multiprocessor goes through its tiles in turn, so that the copies for the next tile run under the
epilogue of the last. A tile of 128 x 256 needs three quarters of the operands that two of 128 x 128 need, and one
matrix instruction has its 256 columns. The tile of a SwiGLU has gate and up in turn, column by column, so that a thread
holds both.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from hrm_kernels.backends import launcher
from hrm_kernels.ops.transformer_block.triton_kernels import Tile, _rstd, _scaled, _tiles
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name

TILE = Tile(128, 256, 64, 8, 3)  # 3 stages of 48 KB, and 64 KB for the result
RESIDUAL = Tile(128, 256, 64, 8, 2)  # 64 KB more for the residual
HALF = TILE.BLOCK_N // 2


@triton.jit
def persistent_linear_kernel(
    x, w, out, sums, M, eps,
    N: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr, BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PROGRAMS: tl.constexpr,
    scales=None, w_scales=None,
):  # fmt: skip
    """Every PROGRAMS-th tile of out ``[M, N]`` = rstd * (x @ w^T); TILES 0: rows of x are not scaled."""
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * TILES_N, PROGRAMS, flatten=True):
        m, n = tile // TILES_N * BLOCK_M, tile % TILES_N * BLOCK_N
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype == tl.int8 else tl.float32)
        for k in range(0, K, BLOCK_K):
            y = tl.dot(x.load([m, k]), w.load([n, k]).T, y, out_dtype=y.dtype)
        if scales is not None:
            y = _scaled(y, scales, w_scales, m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N), M, N)
        if TILES > 0:
            y *= _rstd(sums, m + tl.arange(0, BLOCK_M), M, eps, K, TILES, BLOCK_TILES)[:, None]
        out.store([m, n], y.to(out.dtype))


@triton.jit
def persistent_swiglu_kernel(
    x, w, out, sums, M, eps,
    N: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr, BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PROGRAMS: tl.constexpr,
    scales=None, w_scales=None,
):  # fmt: skip
    """Every PROGRAMS-th tile of out ``[M, N]`` = silu(gate) * up, [gate | up] = rstd * (x @ w^T), w ``[N, 2, K]``."""
    HALF_N: tl.constexpr = BLOCK_N // 2
    TILES_N: tl.constexpr = (N + HALF_N - 1) // HALF_N
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * TILES_N, PROGRAMS, flatten=True):
        m, n = tile // TILES_N * BLOCK_M, tile % TILES_N * HALF_N
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype == tl.int8 else tl.float32)
        for k in range(0, K, BLOCK_K):
            both = tl.reshape(w.load([n, 0, k]), [BLOCK_N, BLOCK_K])
            y = tl.dot(x.load([m, k]), both.T, y, out_dtype=y.dtype)
        gate, up = tl.split(tl.reshape(y, [BLOCK_M, HALF_N, 2]))
        if scales is not None:
            rows, columns = m + tl.arange(0, BLOCK_M), n + tl.arange(0, HALF_N)
            gate = _scaled(gate, scales, w_scales, rows, columns, M, N)
            up = _scaled(up, scales, w_scales + N, rows, columns, M, N)
        if TILES > 0:
            scale = _rstd(sums, m + tl.arange(0, BLOCK_M), M, eps, K, TILES, BLOCK_TILES)[:, None]
            gate *= scale
            up *= scale
        out.store([m, n], (gate * tl.sigmoid(gate) * up).to(out.dtype))


@triton.jit
def persistent_residual_kernel(
    x, w, residual, out, sums, out_sums, M, eps,
    N: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr, BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PROGRAMS: tl.constexpr,
    scales=None, w_scales=None,
):  # fmt: skip
    """Every PROGRAMS-th tile of out ``[M, N]`` = rstd * residual + x @ w^T, and its rows' sums of squares."""
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * TILES_N, PROGRAMS, flatten=True):
        m, n = tile // TILES_N * BLOCK_M, tile % TILES_N * BLOCK_N
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype == tl.int8 else tl.float32)
        for k in range(0, K, BLOCK_K):
            y = tl.dot(x.load([m, k]), w.load([n, k]).T, y, out_dtype=y.dtype)
        rows = m + tl.arange(0, BLOCK_M)
        if scales is not None:
            y = _scaled(y, scales, w_scales, rows, n + tl.arange(0, BLOCK_N), M, N)
        r = residual.load([m, n]).to(tl.float32)
        if TILES > 0:
            r *= _rstd(sums, rows, M, eps, N, TILES, BLOCK_TILES)[:, None]
        u = (r + y).to(out.dtype)
        out.store([m, n], u)
        wide = u.to(tl.float32)  # 0 beyond N, where descriptors read 0
        tl.store(out_sums + rows * TILES_N + tile % TILES_N, tl.sum(wide * wide, 1), rows < M)


def cannot_run(x: torch.Tensor, inner: int) -> str | None:
    """Why these products are not for hidden states like ``x [M, D]`` and an inner size; None where they are."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"tiles of this size are for bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    if x.shape[1] % 8 or inner % 8:
        return "tensor descriptors need rows of a multiple of 16 bytes"
    if x.is_cuda and (torch.version.hip is not None or torch.cuda.get_device_capability(x.device)[0] != 9):
        return "its tiles are for compute capability 9.0; elsewhere they spill or do not fit"
    return None


@functools.cache
def _programs(device: torch.device) -> int:
    """One for each multiprocessor; in the interpreter few, so that each has several tiles."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _whole(matrix: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    aligned = matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()
    return TensorDescriptor.from_tensor(aligned, [rows, columns])


def _launch(kernel, x, w, arrays, N, columns, sums, eps, config: Tile, scales: dict[str, torch.Tensor]) -> None:
    """``columns`` of the result are one tile; ``arrays`` are the arguments from w to M."""
    M, K = x.shape
    programs = min(triton.cdiv(M, config.BLOCK_M) * triton.cdiv(N, columns), _programs(x.device))
    blocks = {"BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N, "BLOCK_K": config.BLOCK_K, "PROGRAMS": programs}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True} | scales
    left = _whole(x, config.BLOCK_M, config.BLOCK_K)
    kernel[(programs,)](left, w, *arrays, M, eps, N=N, K=K, **_tiles(sums), **blocks, **options)


def launch_linear(x, w, sums, out, eps: float, config: Tile, **scales: torch.Tensor) -> None:
    """Write :func:`linear` to out; ``scales`` and ``w_scales`` are those of 8-bit matrices."""
    weight, result = _whole(w, config.BLOCK_N, config.BLOCK_K), _whole(out, config.BLOCK_M, config.BLOCK_N)
    arrays = (result, out if sums is None else sums)  # without sums the pointer is not read
    _launch(persistent_linear_kernel, x, weight, arrays, out.shape[1], config.BLOCK_N, sums, eps, config, scales)


def launch_swiglu(x, w, sums, out, eps: float, config: Tile, **scales: torch.Tensor) -> None:
    """Write :func:`linear_swiglu` to out."""
    N, K, half = out.shape[1], x.shape[1], config.BLOCK_N // 2
    aligned = w if w.data_ptr() % 16 == 0 else w.clone()
    weight = TensorDescriptor(aligned, [N, 2, K], [K, N * K, 1], [half, 2, config.BLOCK_K])
    arrays = (_whole(out, config.BLOCK_M, half), out if sums is None else sums)
    _launch(persistent_swiglu_kernel, x, weight, arrays, N, half, sums, eps, config, scales)


def launch_residual(x, w, residual, sums, out, out_sums, eps: float, config: Tile, **scales: torch.Tensor) -> None:
    """Write :func:`linear_residual` to out and out_sums."""
    weight = _whole(w, config.BLOCK_N, config.BLOCK_K)
    added, result = (_whole(matrix, config.BLOCK_M, config.BLOCK_N) for matrix in (residual, out))
    arrays = (added, result, out if sums is None else sums, out_sums)
    _launch(persistent_residual_kernel, x, weight, arrays, out.shape[1], config.BLOCK_N, sums, eps, config, scales)


@launcher(
    "triton_persistent_linear(Tensor x, Tensor w, Tensor? sums, float eps) -> Tensor",
    lambda x, w, sums, eps: x.new_empty(x.shape[0], w.shape[0]),
)
def linear(x: torch.Tensor, w: torch.Tensor, sums: torch.Tensor | None, eps: float) -> torch.Tensor:
    """``x [M, K] @ w [N, K]^T``, with the rows of x scaled by 1/rms if their sums of squares are passed."""
    out = x.new_empty(x.shape[0], w.shape[0])
    if x.shape[0]:
        launch_linear(x, w, sums, out, eps, TILE)
    return out


@launcher(
    "triton_persistent_swiglu(Tensor x, Tensor w, Tensor? sums, float eps) -> Tensor",
    lambda x, w, sums, eps: x.new_empty(x.shape[0], w.shape[0] // 2),
)
def linear_swiglu(x: torch.Tensor, w: torch.Tensor, sums: torch.Tensor | None, eps: float) -> torch.Tensor:
    """``swiglu(x [M, K] @ w [2 I, K]^T)``, the rows of x scaled as in :func:`linear`."""
    out = x.new_empty(x.shape[0], w.shape[0] // 2)
    if x.shape[0]:
        launch_swiglu(x, w, sums, out, eps, TILE)
    return out


@launcher(
    "triton_persistent_residual(Tensor x, Tensor w, Tensor residual, Tensor? sums, float eps) -> (Tensor, Tensor)",
    lambda x, w, residual, sums, eps: _residual_outputs(residual),
)
def linear_residual(
    x: torch.Tensor, w: torch.Tensor, residual: torch.Tensor, sums: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``u = residual + x [M, K] @ w [N, K]^T`` (residual ``[M, N]`` scaled by its 1/rms), and u's sums of squares."""
    out, out_sums = _residual_outputs(residual)
    if x.shape[0]:
        launch_residual(x, w, residual, sums, out, out_sums, eps, RESIDUAL)
    return out, out_sums


def _residual_outputs(residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    M, N = residual.shape
    return residual.new_empty(M, N), residual.new_empty(M, triton.cdiv(N, TILE.BLOCK_N), dtype=torch.float32)


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: the published block, for its only target."""
    result, D, inner = [], 512, 1536
    for dtype in (torch.bfloat16, torch.float16):
        name = dtype_name(dtype)

        def block(*shape: int, name: str = name) -> str:
            return f"tensordesc<{name}[{','.join(map(str, shape))}]>"

        operand, whole, half = (block(TILE.BLOCK_M, size) for size in (TILE.BLOCK_K, TILE.BLOCK_N, HALF))
        weight, pair = block(TILE.BLOCK_N, TILE.BLOCK_K), block(HALF, 2, TILE.BLOCK_K)
        tiles = triton.cdiv(D, TILE.BLOCK_N)
        for kernel, N, K, scaled in (
            (persistent_linear_kernel, 3 * D, D, 0),
            (persistent_linear_kernel, 3 * D, D, tiles),
            (persistent_swiglu_kernel, inner, D, tiles),
            (persistent_residual_kernel, D, D, tiles),
            (persistent_residual_kernel, D, inner, tiles),
        ):
            signature = {"x": operand, "w": weight, "out": whole}
            if kernel is persistent_swiglu_kernel:
                signature |= {"w": pair, "out": half}
            signature |= {"sums": "*fp32" if scaled else f"*{name}", "M": "i32", "eps": "fp32"}
            if kernel is persistent_residual_kernel:
                signature |= {"residual": whole, "out_sums": "*fp32"}
            constants = {"N": N, "K": K, "TILES": scaled, "BLOCK_TILES": max(scaled, 1)}
            constants |= {"BLOCK_M": TILE.BLOCK_M, "BLOCK_N": TILE.BLOCK_N, "BLOCK_K": TILE.BLOCK_K, "PROGRAMS": 132}
            config = RESIDUAL if kernel is persistent_residual_kernel else TILE
            options = (config.num_warps, config.num_stages, True)
            result.append(Case(kernel, signature, constants, *options, targets=("90",)))
    return result


KERNELS = {
    "linear": persistent_linear_kernel,
    "swiglu": persistent_swiglu_kernel,
    "residual": persistent_residual_kernel,
}

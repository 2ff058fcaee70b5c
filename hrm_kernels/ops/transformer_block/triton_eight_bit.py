"""The fused products of a block in 8 bits: the kernels of :mod:`triton_kernels` and :mod:`triton_persistent`.

A launch per operand finds the largest value of each row, and writes the row in 8 bits with its scale. Rows that wait
for their deferred norm need no other treatment: 1/rms goes into the scale, which the product multiplies in where it
otherwise multiplies 1/rms.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl

from hrm_kernels.backends import INTERPRETING, launcher
from hrm_kernels.ops.transformer_block import triton_kernels as fused
from hrm_kernels.ops.transformer_block import triton_persistent as persistent
from hrm_kernels.ops.transformer_block.eight_bit import FORMATS, LEAST, Quantized
from hrm_kernels.ops.transformer_block.triton_kernels import Tile, _rstd, _tiles
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name

ROWS_OF_BYTES = 128
"""BLOCK_K: as many bytes of a row as the 64 elements of bfloat16 tiles have."""

PRODUCT = replace(fused.PRODUCT, BLOCK_K=ROWS_OF_BYTES)
SWIGLU = replace(fused.SWIGLU, BLOCK_K=ROWS_OF_BYTES)
PERSISTENT = replace(persistent.TILE, BLOCK_K=ROWS_OF_BYTES)
PERSISTENT_RESIDUAL = Tile(128, 128, ROWS_OF_BYTES, 8, 3)  # with 256 columns scales and residual spill

_SMALLEST = tl.constexpr(LEAST)


@triton.jit
def _e4m3(x):
    """The nearest values of e4m3, in float32, halves to even: the conversion in Triton's interpreter is wrong there."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three bits after the point
    fixed = (x + 24576.0) - 24576.0  # 1.5 * 2^14: to multiples of 2^-9, as below the smallest normal number
    return tl.where(tl.abs(x) < 0.015625, fixed, bits.to(tl.float32, bitcast=True))


@triton.jit
def _store_quantized(values, out, scales, m, at, mask, M, inverse, ROUND: tl.constexpr):
    """Write rows m of ``values`` in 8 bits at ``at``, and return their scales; those of other rows are not used."""
    sizes = tl.where(tl.abs(values) < float("inf"), tl.abs(values), float("inf"))  # also of NaN
    scale = tl.maximum(tl.max(sizes, 1), _SMALLEST) * inverse
    values *= (1 / scale)[:, None]
    if out.dtype.element_ty == tl.int8:
        values = (values + 12582912.0) - 12582912.0  # 1.5 * 2^23: rounds to the nearest integer, halves to even
    elif ROUND:
        values = _e4m3(values)
    tl.store(out + at, values.to(out.dtype.element_ty), mask)
    return scale


@triton.jit
def quantize_kernel(
    x,
    sums,
    out,
    scales,
    M,
    eps,
    inverse,
    K: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIGLU: tl.constexpr = False,
    ROUND: tl.constexpr = False,
):
    """Rows program_id(0) of x ``[M, K]`` in 8 bits, or of swiglu(x ``[M, 2 K]``) rounded to the dtype of x.

    ``inverse`` is 1 / the largest value of the format. The scales include the deferred 1/rms of the rows if TILES > 0.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    at = m[:, None].to(tl.int64) * K + k[None, :]
    mask = (m < M)[:, None] & (k < K)[None, :]
    if SWIGLU:
        gate = tl.load(x + at + m[:, None].to(tl.int64) * K, mask, 0.0).to(tl.float32)
        up = tl.load(x + at + (m[:, None].to(tl.int64) + 1) * K, mask, 0.0).to(tl.float32)
        values = (gate * tl.sigmoid(gate) * up).to(x.dtype.element_ty).to(tl.float32)
    else:
        values = tl.load(x + at, mask, 0.0).to(tl.float32)
    scale = _store_quantized(values, out, scales, m, at, mask, M, inverse, ROUND)
    if TILES > 0:
        scale *= _rstd(sums, m, M, eps, K, TILES, BLOCK_TILES)
    tl.store(scales + m, scale, m < M)


@triton.jit
def norm_quantize_kernel(
    x,
    y,
    out,
    h,
    scales,
    M,
    eps,
    inverse,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROUND: tl.constexpr = False,
):
    """Rows program_id(0) of out = rms_norm(x + y) ``[M, D]``, and the same rows in 8 bits as h."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_K)
    at = m[:, None].to(tl.int64) * D + d[None, :]
    mask = (m < M)[:, None] & (d < D)[None, :]
    u = tl.load(x + at, mask, 0.0).to(tl.float32) + tl.load(y + at, mask, 0.0).to(tl.float32)
    u = u.to(out.dtype.element_ty).to(tl.float32)  # rounds the sum, as add_rms_norm does
    normed = (u * tl.rsqrt(tl.sum(u * u, 1) / D + eps)[:, None]).to(out.dtype.element_ty)
    tl.store(out + at, normed, mask)
    scale = _store_quantized(normed.to(tl.float32), h, scales, m, at, mask, M, inverse, ROUND)
    tl.store(scales + m, scale, m < M)


def _rows(K: int) -> dict[str, int]:
    block = triton.next_power_of_2(K)
    return {"BLOCK_M": max(1, 2048 // block), "BLOCK_K": block}  # as in add_rms_norm


@launcher(
    "triton_quantize(Tensor x, Tensor? sums, float eps, str name) -> (Tensor, Tensor)",
    lambda x, sums, eps, name: _quantized(x, name),
)
def quantize(x: torch.Tensor, sums: torch.Tensor | None, eps: float, name: str) -> Quantized:
    """``x [M, K]`` in a format of :data:`FORMATS`; with the sums of squares of its rows, its scales include 1/rms."""
    (M, K), out = x.shape, _quantized(x, name)
    if M:
        config = _rows(K)
        quantize_kernel[(triton.cdiv(M, config["BLOCK_M"]),)](
            x, x if sums is None else sums, *out, M, eps, 1 / FORMATS[name].largest, K, **_tiles(sums), **config,
            ROUND=INTERPRETING, num_warps=4,
        )  # fmt: skip
    return out


@launcher(
    "triton_quantize_swiglu(Tensor gate_up, str name) -> (Tensor, Tensor)",
    lambda gate_up, name: _quantized(gate_up[:, : gate_up.shape[1] // 2], name),
)
def quantize_swiglu(gate_up: torch.Tensor, name: str) -> Quantized:
    """``swiglu(gate_up [M, 2 I])`` in a format, without a copy in the dtype of gate_up."""
    M, K = gate_up.shape[0], gate_up.shape[1] // 2
    out = _quantized(gate_up[:, :K], name)
    if M:
        config = _rows(K)
        quantize_kernel[(triton.cdiv(M, config["BLOCK_M"]),)](
            gate_up, gate_up, *out, M, 0.0, 1 / FORMATS[name].largest, K, 0, 1, **config,
            SWIGLU=True, ROUND=INTERPRETING, num_warps=4,
        )  # fmt: skip
    return out


@launcher(
    "triton_norm_quantize(Tensor x, Tensor y, float eps, str name) -> (Tensor, Tensor, Tensor)",
    lambda x, y, eps, name: (torch.empty_like(x), *_quantized(x, name)),
)
def norm_quantize(
    x: torch.Tensor, y: torch.Tensor, eps: float, name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``rms_norm(x + y) [M, D]``, and its values and scales in a format."""
    (M, D), out, quantized = x.shape, torch.empty_like(x), _quantized(x, name)
    if M:
        config = _rows(D)
        norm_quantize_kernel[(triton.cdiv(M, config["BLOCK_M"]),)](
            x, y, out, *quantized, M, eps, 1 / FORMATS[name].largest, D, **config, ROUND=INTERPRETING, num_warps=4
        )
    return out, *quantized


def _quantized(x: torch.Tensor, name: str) -> Quantized:
    return Quantized(x.new_empty(x.shape, dtype=FORMATS[name].dtype), x.new_empty(x.shape[0], dtype=torch.float32))


def cannot_persist(x: torch.Tensor, inner: int) -> str | None:
    """Why the persistent kernels are not for hidden states like ``x [M, D]`` and an inner size; None where they are."""
    if x.shape[1] % 16 or inner % 16:
        return "tensor descriptors need rows of a multiple of 16 bytes"
    return persistent.cannot_run(x, inner)


@launcher(
    "triton_eight_bit_linear(Tensor x, Tensor scales, Tensor w, Tensor w_scales, ScalarType dtype, bool persists) "
    "-> Tensor",
    lambda x, scales, w, w_scales, dtype, persists: x.new_empty(x.shape[0], w.shape[0], dtype=dtype),
)
def linear(
    x: torch.Tensor,
    scales: torch.Tensor,
    w: torch.Tensor,
    w_scales: torch.Tensor,
    dtype: torch.dtype,
    persists: bool,
) -> torch.Tensor:
    """``x [M, K] @ w [N, K]^T`` in a dtype."""
    out = x.new_empty(x.shape[0], w.shape[0], dtype=dtype)
    if x.shape[0]:
        launch, config = (persistent.launch_linear, PERSISTENT) if persists else (fused.launch_linear, PRODUCT)
        launch(x, w, None, out, 0.0, config, scales=scales, w_scales=w_scales)
    return out


@launcher(
    "triton_eight_bit_swiglu(Tensor x, Tensor scales, Tensor w, Tensor w_scales, ScalarType dtype, bool persists) "
    "-> Tensor",
    lambda x, scales, w, w_scales, dtype, persists: x.new_empty(x.shape[0], w.shape[0] // 2, dtype=dtype),
)
def linear_swiglu(
    x: torch.Tensor,
    scales: torch.Tensor,
    w: torch.Tensor,
    w_scales: torch.Tensor,
    dtype: torch.dtype,
    persists: bool,
) -> torch.Tensor:
    """``swiglu(x [M, K] @ w [2 I, K]^T)`` in a dtype."""
    out = x.new_empty(x.shape[0], w.shape[0] // 2, dtype=dtype)
    if x.shape[0]:
        launch, config = (persistent.launch_swiglu, PERSISTENT) if persists else (fused.launch_swiglu, SWIGLU)
        launch(x, w, None, out, 0.0, config, scales=scales, w_scales=w_scales)
    return out


@launcher(
    "triton_eight_bit_residual(Tensor x, Tensor scales, Tensor w, Tensor w_scales, Tensor residual, Tensor? sums, "
    "float eps, bool persists) -> (Tensor, Tensor)",
    lambda x, scales, w, w_scales, residual, sums, eps, persists: _residual_outputs(residual, persists),
)
def linear_residual(
    x: torch.Tensor,
    scales: torch.Tensor,
    w: torch.Tensor,
    w_scales: torch.Tensor,
    residual: torch.Tensor,
    sums: torch.Tensor | None,
    eps: float,
    persists: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``u = residual + x [M, K] @ w [N, K]^T`` (residual ``[M, N]`` scaled by its 1/rms), and u's sums of squares."""
    out, out_sums = _residual_outputs(residual, persists)
    if x.shape[0]:
        launch, config = fused.launch_residual, PRODUCT
        if persists:
            launch, config = persistent.launch_residual, PERSISTENT_RESIDUAL
        launch(x, w, residual, sums, out, out_sums, eps, config, scales=scales, w_scales=w_scales)
    return out, out_sums


def _residual_outputs(residual: torch.Tensor, persists: bool) -> tuple[torch.Tensor, torch.Tensor]:
    (M, N), config = residual.shape, PERSISTENT_RESIDUAL if persists else PRODUCT
    return residual.new_empty(M, N), residual.new_empty(M, triton.cdiv(N, config.BLOCK_N), dtype=torch.float32)


_POINTERS = {"fp8": "fp8e4nv", "int8": "i8"}
_TARGETS = {"fp8": ("89", "90", "100"), "int8": ("80", "90")}
"""FP8 where it exists, int8 elsewhere; with int8 on sm_90, so that a measurement can compare them."""


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: the published block of bfloat16 states."""
    result, D, inner = [], 512, 1536
    state = dtype_name(torch.bfloat16)
    for name, kind in _POINTERS.items():
        for K, tiles in ((D, 0), (D, 2), (D, 4), (inner, 0)):
            signature = {"x": f"*{state}", "sums": "*fp32" if tiles else f"*{state}", "out": f"*{kind}"}
            signature |= {"scales": "*fp32", "M": "i32", "eps": "fp32", "inverse": "fp32"}
            constants = {"K": K, "TILES": tiles, "BLOCK_TILES": max(tiles, 1), **_rows(K)}
            result.append(Case(quantize_kernel, signature, constants, targets=_TARGETS[name]))
        result.append(Case(quantize_kernel, signature, constants | {"SWIGLU": True}, targets=_TARGETS[name]))
        signature = {"x": f"*{state}", "y": f"*{state}", "out": f"*{state}", "h": f"*{kind}", "scales": "*fp32"}
        signature |= {"M": "i32", "eps": "fp32", "inverse": "fp32"}
        result.append(Case(norm_quantize_kernel, signature, {"D": D, **_rows(D)}, targets=_TARGETS[name]))
        result += [case for persists in (False, True) for case in _products(name, persists, D, inner)]
    return result


def _products(name: str, persists: bool, D: int, inner: int) -> Sequence[Case]:
    result, kind, state = [], _POINTERS[name], dtype_name(torch.bfloat16)
    kernels = persistent.KERNELS if persists else fused.KERNELS
    for which, N, K in (("linear", 3 * D, D), ("swiglu", inner, D), ("residual", D, D), ("residual", D, inner)):
        config = {"linear": PRODUCT, "swiglu": SWIGLU, "residual": PRODUCT}[which]
        if persists:
            config = PERSISTENT_RESIDUAL if which == "residual" else PERSISTENT
        m, n, k = config.BLOCK_M, config.BLOCK_N, config.BLOCK_K
        operand, weight, block = f"*{kind}", f"*{kind}", f"*{state}"
        if persists:
            half = n // 2
            operand, weight, block = (_block(t, *at) for t, at in ((kind, (m, k)), (kind, (n, k)), (state, (m, n))))
            if which == "swiglu":
                weight, block = _block(kind, half, 2, k), _block(state, m, half)
        tiles = triton.cdiv(D, n) if which == "residual" else 0
        signature = {"x": operand, "w": weight, "out": block, "sums": "*fp32" if tiles else f"*{state}"}
        signature |= {"M": "i32", "eps": "fp32", "scales": "*fp32", "w_scales": "*fp32"}
        if which == "residual":
            signature |= {"residual": block, "out_sums": "*fp32"}
        constants = {"N": N, "K": K, "TILES": tiles, "BLOCK_TILES": max(tiles, 1)}
        constants |= {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k} | ({"PROGRAMS": 132} if persists else {})
        options = (config.num_warps, config.num_stages, True)
        targets = ("90",) if persists else _TARGETS[name]
        result.append(Case(kernels[which], signature, constants, *options, targets=targets))
    return result


def _block(kind: str, *shape: int) -> str:
    return f"tensordesc<{kind}[{','.join(map(str, shape))}]>"

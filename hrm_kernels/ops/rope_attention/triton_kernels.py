"""Attention over packed ``qkv [B, S, 3, H, D]``, read as it lies, with rotary positions.

Short sequences, where a program holds all keys of one (row, head): one kernel forward, one backward, RoPE in
registers. It reads the first and second halves of q and k as tiles of their own, so that the rotation is elementwise
and the scores are ``q1 k1ᵀ + q2 k2ᵀ``.

Longer ones: RoPE once into a workspace of q and k (in every step of a loop over blocks it would cost as much as the
softmax, and its tables four times the bytes of a block of k), then loops over blocks with the softmax kept online
(FlashAttention, arXiv 2205.14135). Backward, the gradients of q and those of k and v are two kernels: no atomics.

Logarithms are to base 2: the scores carry a factor log2(e), and ``lse[b, h, m] = log2 sum_n 2^scores[m, n]``.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from hrm_kernels.backends import launcher
from hrm_kernels.ops.rope_attention.heads import HEAD_DIMS, Heads, triton_cannot_attend
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_tables(cos, sin, position, mask, D: tl.constexpr, AGAIN: tl.constexpr = False):
    """cos and sin ``[positions, D / 2]`` of both halves of a head.

    A second load of the same positions says AGAIN: it is from the L1 cache, and (being another instruction) not merged
    with the first, which would keep four tiles of float32 in registers meanwhile.
    """
    CACHE: tl.constexpr = ".ca" if AGAIN else ""
    at = position[:, None] * D + tl.arange(0, D // 2)[None, :]
    cos1 = tl.load(cos + at, mask, 0.0, cache_modifier=CACHE)
    cos2 = tl.load(cos + D // 2 + at, mask, 0.0, cache_modifier=CACHE)
    sin1 = tl.load(sin + at, mask, 0.0, cache_modifier=CACHE)
    sin2 = tl.load(sin + D // 2 + at, mask, 0.0, cache_modifier=CACHE)
    return cos1, cos2, sin1, sin2


@triton.jit
def rotate(x1, x2, cos1, cos2, sin1, sin2, mask):
    """The halves of q or k turned, in float32, then rounded as the published code does; 0 outside the mask.

    They are 0 there without it. The mask ends Triton's search for loads behind an operand of a product: with nothing
    but loads found, it would do this arithmetic in the operand's layout, every warp on all of k, and spill (mma.sync).
    """
    a, b = x1.to(tl.float32), x2.to(tl.float32)
    y1, y2 = (a * cos1 - b * sin1).to(x1.dtype), (b * cos2 + a * sin2).to(x1.dtype)
    return tl.where(mask, y1, 0.0), tl.where(mask, y2, 0.0)


@triton.jit
def rotate_back(x1, x2, cos1, cos2, sin1, sin2):
    """The transpose of ``rotate``, for float32 gradients."""
    return x1 * cos1 + x2 * sin2, x2 * cos2 - x1 * sin1


@triton.jit(do_not_specialize=["S", "H"])
def short_forward_kernel(
    qkv, cos, sin, out, lse, S, H,
    D: tl.constexpr, ROPE: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One (row, head): the whole score matrix ``[S, S]`` in one tile. With SAVE also lse ``[B, H, S]``."""
    SCALE: tl.constexpr = D**-0.5 * LOG2_E
    HALF: tl.constexpr = D // 2
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    s = tl.arange(0, BLOCK_S)
    mask = (s < S)[:, None]
    half, d = tl.arange(0, HALF)[None, :], tl.arange(0, D)[None, :]

    q_at = qkv + b * S * (3 * H * D) + h * D + s[:, None] * (3 * H * D)
    k_at, v_at = q_at + H * D, q_at + 2 * H * D
    q1, q2 = tl.load(q_at + half, mask, 0.0), tl.load(q_at + HALF + half, mask, 0.0)
    k1, k2 = tl.load(k_at + half, mask, 0.0), tl.load(k_at + HALF + half, mask, 0.0)
    v = tl.load(v_at + d, mask, 0.0)
    if ROPE:
        cos1, cos2, sin1, sin2 = load_tables(cos, sin, s, mask, D)
        q1, q2 = rotate(q1, q2, cos1, cos2, sin1, sin2, mask)
        k1, k2 = rotate(k1, k2, cos1, cos2, sin1, sin2, mask)

    scores = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
    scores = tl.dot(q2, tl.trans(k2), scores, input_precision=PRECISION) * SCALE
    scores = tl.where((s < S)[None, :], scores, float("-inf"))
    top = tl.max(scores, 1)
    p = tl.exp2(scores - top[:, None])
    total = tl.sum(p, 1)
    o = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) / total[:, None]

    tl.store(out + b * S * (H * D) + h * D + s[:, None] * (H * D) + d, o.to(out.dtype.element_ty), mask)
    if SAVE:
        tl.store(lse + (b * H + h) * S + s, top + tl.log2(total), s < S)


@triton.jit(do_not_specialize=["S", "H"])
def short_backward_kernel(
    qkv, cos, sin, dout, lse, dqkv, S, H,
    D: tl.constexpr, ROPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One (row, head): all keys in one tile, a loop over blocks of queries; dq, dk and dv into the packed dqkv.

    Scores are held transposed, ``[n, m]`` for key n and query m, so that the products for dk and dv take their left
    side from registers. With all keys at hand, ``delta[m] = sum_n p dp`` needs no out.
    """
    SCALE: tl.constexpr = D**-0.5 * LOG2_E
    HALF: tl.constexpr = D // 2
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    n = tl.arange(0, BLOCK_N)
    n_mask = (n < S)[:, None]
    half, d = tl.arange(0, HALF)[None, :], tl.arange(0, D)[None, :]
    qkv += b * S * (3 * H * D) + h * D
    dqkv += b * S * (3 * H * D) + h * D
    dout += b * S * (H * D) + h * D
    lse += (b * H + h) * S

    row = n[:, None] * (3 * H * D)
    k1 = tl.load(qkv + H * D + (row + half), n_mask, 0.0)
    k2 = tl.load(qkv + H * D + HALF + (row + half), n_mask, 0.0)
    v = tl.load(qkv + 2 * H * D + (row + d), n_mask, 0.0)
    if ROPE:
        cos1, cos2, sin1, sin2 = load_tables(cos, sin, n, n_mask, D)
        k1, k2 = rotate(k1, k2, cos1, cos2, sin1, sin2, n_mask)
    dk1 = tl.zeros([BLOCK_N, HALF], tl.float32)
    dk2 = tl.zeros([BLOCK_N, HALF], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)

    for start in range(0, S, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        m_mask = (m < S)[:, None]
        q_at = m[:, None] * (3 * H * D) + half
        q1, q2 = tl.load(qkv + q_at, m_mask, 0.0), tl.load(qkv + HALF + q_at, m_mask, 0.0)
        do = tl.load(dout + (m[:, None] * (H * D) + d), m_mask, 0.0)
        log_sum = tl.load(lse + m, m < S, 0.0)
        if ROPE:
            q_cos1, q_cos2, q_sin1, q_sin2 = load_tables(cos, sin, m, m_mask, D)
            q1, q2 = rotate(q1, q2, q_cos1, q_cos2, q_sin1, q_sin2, m_mask)

        scores = tl.dot(k1, tl.trans(q1), input_precision=PRECISION)
        scores = tl.dot(k2, tl.trans(q2), scores, input_precision=PRECISION) * SCALE
        p = tl.where(n_mask, tl.exp2(scores - log_sum[None, :]), 0.0)
        dv = tl.dot(p.to(v.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        # sum(p) is 1 but for lse's rounding, which for large scores would else not cancel where a row is one-hot.
        # queries beyond S have do = 0, hence dp = 0 and ds = 0: their p, which is not 0, has no effect
        delta = tl.sum(p * dp, 0) / tl.sum(p, 0)
        ds = (p * (dp - delta[None, :])).to(v.dtype)
        dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
        dk2 = tl.dot(ds, q2, dk2, input_precision=PRECISION)
        dq1 = tl.dot(tl.trans(ds), k1, input_precision=PRECISION) * D**-0.5
        dq2 = tl.dot(tl.trans(ds), k2, input_precision=PRECISION) * D**-0.5
        if ROPE:
            q_cos1, q_cos2, q_sin1, q_sin2 = load_tables(cos, sin, m, m_mask, D, AGAIN=True)
            dq1, dq2 = rotate_back(dq1, dq2, q_cos1, q_cos2, q_sin1, q_sin2)
        tl.store(dqkv + q_at, dq1.to(v.dtype), m_mask)
        tl.store(dqkv + HALF + q_at, dq2.to(v.dtype), m_mask)

    tl.store(dqkv + 2 * H * D + (row + d), dv.to(v.dtype), n_mask)
    dk1, dk2 = dk1 * D**-0.5, dk2 * D**-0.5
    if ROPE:
        cos1, cos2, sin1, sin2 = load_tables(cos, sin, n, n_mask, D, AGAIN=True)
        dk1, dk2 = rotate_back(dk1, dk2, cos1, cos2, sin1, sin2)
    tl.store(dqkv + H * D + (row + half), dk1.to(v.dtype), n_mask)
    tl.store(dqkv + H * D + HALF + (row + half), dk2.to(v.dtype), n_mask)


@triton.jit(do_not_specialize=["S", "H"])
def rotate_kernel(qkv, cos, sin, turned, S, H, D: tl.constexpr, BLOCK_S: tl.constexpr):
    """BLOCK_S positions of one row, a loop over the heads of q and k: turned ``[B, S, 2, H, D]``, tables read once."""
    HALF: tl.constexpr = D // 2
    blocks = tl.cdiv(S, BLOCK_S)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    s = tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    mask = (s < S)[:, None]
    half = tl.arange(0, HALF)[None, :]
    cos1, cos2, sin1, sin2 = load_tables(cos, sin, s, mask, D)
    read = qkv + (b * S + s)[:, None] * (3 * H * D) + half
    write = turned + (b * S + s)[:, None] * (2 * H * D) + half
    for head in range(2 * H):
        at = head * D
        x1, x2 = tl.load(read + at, mask, 0.0), tl.load(read + at + HALF, mask, 0.0)
        x1, x2 = rotate(x1, x2, cos1, cos2, sin1, sin2, mask)
        tl.store(write + at, x1, mask)
        tl.store(write + at + HALF, x2, mask)


@triton.jit
def attend(acc, top, total, q, k_at, v_at, n, S, SCALE: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr):
    """One block of keys into the running sums of a block of queries; with MASK some keys may lie beyond S."""
    if MASK:
        mask = (n < S)[:, None]
        k, v = tl.load(k_at, mask, 0.0), tl.load(v_at, mask, 0.0)
    else:
        k, v = tl.load(k_at), tl.load(v_at)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * SCALE
    if MASK:
        scores = tl.where((n < S)[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    p = tl.exp2(scores - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, new_top, total


@triton.jit(do_not_specialize=["S", "H"])
def long_forward_kernel(
    qk, qkv, out, lse, S, H,
    D: tl.constexpr, QK: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one (row, head), a loop over blocks of keys. With SAVE also lse ``[B, H, S]``.

    q and k are the first two of the QK parts of ``qk [B, S, QK, H, D]``: of qkv itself (QK = 3), or turned (QK = 2).
    """
    SCALE: tl.constexpr = D**-0.5 * LOG2_E
    blocks = tl.cdiv(S, BLOCK_M)
    b = (tl.program_id(0) // blocks // H).to(tl.int64)
    h = tl.program_id(0) // blocks % H
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = (m < S)[:, None]
    d = tl.arange(0, D)[None, :]
    n = tl.arange(0, BLOCK_N)

    q = tl.load(qk + (b * S + m)[:, None] * (QK * H * D) + h * D + d, mask, 0.0)
    k_at = qk + (b * S + n)[:, None] * (QK * H * D) + (H + h) * D + d
    v_at = qkv + (b * S + n)[:, None] * (3 * H * D) + (2 * H + h) * D + d
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    whole = S // BLOCK_N * BLOCK_N
    for _ in range(0, whole, BLOCK_N):
        acc, top, total = attend(acc, top, total, q, k_at, v_at, n, S, SCALE, False, PRECISION)
        k_at += BLOCK_N * (QK * H * D)
        v_at += BLOCK_N * (3 * H * D)
    if whole < S:
        acc, top, total = attend(acc, top, total, q, k_at, v_at, whole + n, S, SCALE, True, PRECISION)

    o = acc / total[:, None]
    tl.store(out + (b * S + m)[:, None] * (H * D) + h * D + d, o.to(out.dtype.element_ty), mask)
    if SAVE:
        tl.store(lse + (b * H + h) * S + m, top + tl.log2(total), m < S)


@triton.jit
def halves(x, ROWS: tl.constexpr, D: tl.constexpr):
    """Columns ``[0, D / 2)`` and ``[D / 2, D)`` of a tile."""
    return tl.split(tl.permute(tl.reshape(x, [ROWS, 2, D // 2]), [0, 2, 1]))


@triton.jit(do_not_specialize=["S", "H"])
def dq_kernel(
    qk, qkv, cos, sin, out, dout, lse, delta, dqkv, S, H,
    D: tl.constexpr, QK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one (row, head), a loop over blocks of keys: dq into dqkv, and delta = sum(dout * out)."""
    SCALE: tl.constexpr = D**-0.5 * LOG2_E
    HALF: tl.constexpr = D // 2
    blocks = tl.cdiv(S, BLOCK_M)
    b = (tl.program_id(0) // blocks // H).to(tl.int64)
    h = tl.program_id(0) // blocks % H
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = (m < S)[:, None]
    d = tl.arange(0, D)[None, :]

    q = tl.load(qk + (b * S + m)[:, None] * (QK * H * D) + h * D + d, mask, 0.0)
    out_at = (b * S + m)[:, None] * (H * D) + h * D + d
    do = tl.load(dout + out_at, mask, 0.0)
    row_sum = tl.sum(do.to(tl.float32) * tl.load(out + out_at, mask, 0.0).to(tl.float32), 1)
    tl.store(delta + (b * H + h) * S + m, row_sum, m < S)
    log_sum = tl.load(lse + (b * H + h) * S + m, m < S, 0.0)

    k_at = qk + (b * S + tl.arange(0, BLOCK_N))[:, None] * (QK * H * D) + (H + h) * D + d
    v_at = qkv + (b * S + tl.arange(0, BLOCK_N))[:, None] * (3 * H * D) + (2 * H + h) * D + d
    dq = tl.zeros([BLOCK_M, D], tl.float32)
    for start in range(0, S, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k, v = tl.load(k_at, (n < S)[:, None], 0.0), tl.load(v_at, (n < S)[:, None], 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * SCALE
        p = tl.where((n < S)[None, :], tl.exp2(scores - log_sum[:, None]), 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - row_sum[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        k_at += BLOCK_N * (QK * H * D)
        v_at += BLOCK_N * (3 * H * D)

    dq *= D**-0.5
    dq_at = dqkv + (b * S + m)[:, None] * (3 * H * D) + h * D
    if QK == 2:
        dq1, dq2 = halves(dq, BLOCK_M, D)
        cos1, cos2, sin1, sin2 = load_tables(cos, sin, m, mask, D)
        dq1, dq2 = rotate_back(dq1, dq2, cos1, cos2, sin1, sin2)
        half = tl.arange(0, HALF)[None, :]
        tl.store(dq_at + half, dq1.to(q.dtype), mask)
        tl.store(dq_at + HALF + half, dq2.to(q.dtype), mask)
    else:
        tl.store(dq_at + d, dq.to(q.dtype), mask)


@triton.jit(do_not_specialize=["S", "H"])
def dkv_kernel(
    qk, qkv, cos, sin, dout, lse, delta, dqkv, S, H,
    D: tl.constexpr, QK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_N keys of one (row, head), a loop over blocks of queries: dk and dv into dqkv.

    Scores are held transposed, ``[n, m]``. Queries beyond S have dout = delta = 0 and add nothing; keys beyond S only
    touch rows that are not written.
    """
    SCALE: tl.constexpr = D**-0.5 * LOG2_E
    HALF: tl.constexpr = D // 2
    blocks = tl.cdiv(S, BLOCK_N)
    b = (tl.program_id(0) // blocks // H).to(tl.int64)
    h = tl.program_id(0) // blocks % H
    n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (n < S)[:, None]
    d = tl.arange(0, D)[None, :]

    k = tl.load(qk + (b * S + n)[:, None] * (QK * H * D) + (H + h) * D + d, mask, 0.0)
    v = tl.load(qkv + (b * S + n)[:, None] * (3 * H * D) + (2 * H + h) * D + d, mask, 0.0)
    q_at = qk + (b * S + tl.arange(0, BLOCK_M))[:, None] * (QK * H * D) + h * D + d
    do_at = dout + (b * S + tl.arange(0, BLOCK_M))[:, None] * (H * D) + h * D + d
    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)
    for start in range(0, S, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        q, do = tl.load(q_at, (m < S)[:, None], 0.0), tl.load(do_at, (m < S)[:, None], 0.0)
        log_sum = tl.load(lse + (b * H + h) * S + m, m < S, 0.0)
        row_sum = tl.load(delta + (b * H + h) * S + m, m < S, 0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * SCALE
        p = tl.exp2(scores - log_sum[None, :])
        dv = tl.dot(p.to(v.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = p * (dp - row_sum[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        q_at += BLOCK_M * (QK * H * D)
        do_at += BLOCK_M * (H * D)

    row = dqkv + (b * S + n)[:, None] * (3 * H * D) + h * D
    tl.store(row + 2 * H * D + d, dv.to(v.dtype), mask)
    dk *= D**-0.5
    if QK == 2:
        dk1, dk2 = halves(dk, BLOCK_N, D)
        cos1, cos2, sin1, sin2 = load_tables(cos, sin, n, mask, D)
        dk1, dk2 = rotate_back(dk1, dk2, cos1, cos2, sin1, sin2)
        half = tl.arange(0, HALF)[None, :]
        tl.store(row + H * D + half, dk1.to(v.dtype), mask)
        tl.store(row + H * D + HALF + half, dk2.to(v.dtype), mask)
    else:
        tl.store(row + H * D + d, dk.to(v.dtype), mask)


@dataclass(frozen=True)
class Tile:
    """Block sizes and launch options of one kernel."""

    m: int
    n: int
    num_warps: int
    num_stages: int = 2


@dataclass(frozen=True)
class Plan:
    """How sequences of one length run: each way by its short kernel, or by the long ones (backward by two)."""

    short: bool  # forward
    forward: Tile
    backward: Tile  # of the short kernel, or of dkv_kernel
    dq: Tile | None = None  # None: backward is short


WGMMA, MMA_SYNC, AMD = ("90", "100"), ("80", "86", "89", "120"), ("gfx942",)
"""Targets by where a product's operands come from: shared memory, registers (both NVIDIA), registers (AMD)."""


def plan(S: int, D: int, dtype: torch.dtype, target: str) -> Plan:
    """Tiles for sequences of S positions on ``target``, a compute capability (one of those above) or AMD architecture.

    Registers are the limit: the ahead-of-time gate says which of these spill, with Triton 3.6 and 3.9, and within what
    shared memory each runs. None has been timed on a GPU yet.
    """
    block = max(16, triton.next_power_of_2(S))  # a product needs 16 columns
    if dtype == torch.float32:
        # tf32x3 holds every operand twice, as high and low parts: smaller tiles, and few of them short (and none for
        # D = 128, whose long forward spills at any size)
        if block <= 32:
            warps = 8 if D * block > 64 * 16 else 4 if D * block > 32 * 16 else 2
            return Plan(True, Tile(block, block, 4), Tile(16, block, warps, 1))
        return Plan(False, Tile(64, 16, 8, 1), Tile(16, 32, 8, 1), Tile(64, 16, 8, 1))
    if block <= (64 if D == 128 else 128):
        # 128 x 128 scores in float32 are 64 registers to each of 256 threads
        forward = Tile(block, block, 8 if block == 128 else 4)
        # 64 queries are the least that wgmma takes; elsewhere 16, as of 82 positions 6 blocks of 16 leave less over
        # than 2 of 64. D = 64 is at the limit of registers: one of the two versions of Triton spills with 64 and with
        # 16 on sm_100, with 16 on sm_80, with 32 on sm_86, and on sm_120 with any
        m = 64 if target in WGMMA and block == 128 else 16
        if D == 64 and block == 128:
            if target == "120":
                return Plan(True, forward, Tile(32, 128, 8), Tile(128, 64, 8))
            m = {"90": 64, "100": 32, "80": 32}.get(target, 16)
        warps = 8 if block == 128 or block * D >= 64 * 128 else 2 if block * D == 32 * 32 else 4
        return Plan(True, forward, Tile(m, block, warps, 1))
    if D == 128:
        # 32 x 64 in dkv spill on gfx942, and 64 x 64 in dq with Triton 3.9
        return Plan(False, Tile(64, 32, 8), Tile(16, 64, 8), Tile(64, 32, 8))
    # 128 rows spill for D = 32 on sm_120 with Triton 3.9 (not with 3.6)
    forward = Tile(64, 64, 4, 3) if D == 32 and target == "120" else Tile(128, 64, 8, 3)
    return Plan(False, forward, Tile(32, 128, 8), Tile(128, 64, 8))


def _plan(qkv: torch.Tensor, num_heads: int) -> Plan:
    return plan(qkv.shape[1], qkv.shape[2] // (3 * num_heads), qkv.dtype, _target(qkv))


def _target(qkv: torch.Tensor) -> str:
    if not qkv.is_cuda:
        return "90"  # the interpreter: larger tiles mean fewer steps
    if torch.version.hip is not None:
        return AMD[0]
    major, minor = torch.cuda.get_device_capability(qkv.device)
    exact = f"{major}{minor}"
    return exact if exact in WGMMA + MMA_SYNC else MMA_SYNC[0]  # mma.sync is everywhere


def is_short(qkv: torch.Tensor, num_heads: int) -> bool:
    """Whether the backward kernel does without forward's result."""
    return _plan(qkv, num_heads).dq is None


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: "ieee" on AMD's float32 matrix cores, three tf32 products on NVIDIA's (to 1e-6)."""
    return "ieee" if dtype != torch.float32 or torch.version.hip else "tf32x3"


def _sizes(qkv: torch.Tensor, num_heads: int) -> tuple[int, int, int]:
    batch, positions, columns = qkv.shape
    return batch, positions, columns // (3 * num_heads)


def _turned(qkv: torch.Tensor, heads: Heads) -> torch.Tensor:
    """What the long kernels read q and k from: the workspace with both turned, or qkv itself without RoPE."""
    cos, sin, num_heads = heads
    if cos is None:
        return qkv
    batch, positions, D = _sizes(qkv, num_heads)
    turned = qkv.new_empty(batch, positions, 2 * num_heads * D)
    # 512 elements of each half to a program of 4 warps at D = 64: 4 table values of each kind to a thread
    rotate_kernel[(batch * triton.cdiv(positions, ROTATE_ROWS),)](
        qkv, cos, sin, turned, positions, num_heads, D, BLOCK_S=ROTATE_ROWS, num_warps=8, enable_fp_fusion=True
    )
    return turned


ROTATE_ROWS = 16


@launcher(
    "triton_rope_attention(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads, bool save) -> (Tensor, Tensor)",
    lambda qkv, heads, save: _outputs(qkv, heads.num_heads, save),
    grouped=(1, Heads),
)
def forward(qkv: torch.Tensor, heads: Heads, save: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``(out, lse)`` of contiguous arguments; lse ``[B, H, S]`` is empty without ``save``."""
    cos, sin, num_heads = heads
    out, lse = _outputs(qkv, num_heads, save)
    batch, positions, D = _sizes(qkv, num_heads)
    how, programs = _plan(qkv, num_heads), batch * num_heads
    tile, options = how.forward, {"PRECISION": precision(qkv.dtype), "enable_fp_fusion": True}
    if out.numel() == 0:
        return out, lse
    if how.short:
        short_forward_kernel[(programs,)](
            qkv, cos, sin, out, lse, positions, num_heads, D, ROPE=cos is not None, SAVE=save, BLOCK_S=tile.n,
            num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
        )  # fmt: skip
    else:
        qk = _turned(qkv, heads)
        long_forward_kernel[(programs * triton.cdiv(positions, tile.m),)](
            qk, qkv, out, lse, positions, num_heads, D, QK=3 if cos is None else 2, SAVE=save,
            BLOCK_M=tile.m, BLOCK_N=tile.n, num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
        )  # fmt: skip
    return out, lse


def _outputs(qkv: torch.Tensor, num_heads: int, save: bool) -> tuple[torch.Tensor, torch.Tensor]:
    batch, positions, columns = qkv.shape
    lse = (batch, num_heads, positions) if save else (0,)
    return qkv.new_empty(batch, positions, columns // 3), qkv.new_empty(lse, dtype=torch.float32)


@launcher(
    "triton_rope_attention_backward(Tensor dout, Tensor qkv, Tensor lse, Tensor? out, Tensor? cos, Tensor? sin,"
    " int num_heads) -> Tensor",
    lambda dout, qkv, lse, out, heads: torch.empty_like(qkv),
    grouped=(4, Heads),
)
def backward(
    dout: torch.Tensor, qkv: torch.Tensor, lse: torch.Tensor, out: torch.Tensor | None, heads: Heads
) -> torch.Tensor:
    """The gradient of qkv; all contiguous. ``out`` is what forward returned, not needed where :func:`is_short`."""
    cos, sin, num_heads = heads
    dqkv = torch.empty_like(qkv)
    batch, positions, D = _sizes(qkv, num_heads)
    how, programs = _plan(qkv, num_heads), batch * num_heads
    tile, options = how.backward, {"PRECISION": precision(qkv.dtype), "enable_fp_fusion": True}
    if dqkv.numel() == 0:
        return dqkv
    if how.dq is None:
        short_backward_kernel[(programs,)](
            qkv, cos, sin, dout, lse, dqkv, positions, num_heads, D, ROPE=cos is not None,
            BLOCK_M=tile.m, BLOCK_N=tile.n, num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
        )  # fmt: skip
        return dqkv
    qk, delta, options["QK"] = _turned(qkv, heads), torch.empty_like(lse), 3 if cos is None else 2
    dq_kernel[(programs * triton.cdiv(positions, how.dq.m),)](
        qk, qkv, cos, sin, out, dout, lse, delta, dqkv, positions, num_heads, D,
        BLOCK_M=how.dq.m, BLOCK_N=how.dq.n, num_warps=how.dq.num_warps, num_stages=how.dq.num_stages, **options,
    )  # fmt: skip
    dkv_kernel[(programs * triton.cdiv(positions, tile.n),)](
        qk, qkv, cos, sin, dout, lse, delta, dqkv, positions, num_heads, D,
        BLOCK_M=tile.m, BLOCK_N=tile.n, num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
    )  # fmt: skip
    return dqkv


def _blocks(tile: Tile) -> dict[str, Any]:
    return {"BLOCK_M": tile.m, "BLOCK_N": tile.n}


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: every plan of the head widths, with RoPE and gradients."""
    result = {}
    positions = (16, 32, 64, 128, 900)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        p, i = f"*{dtype_name(dtype)}", {"S": "i32", "H": "i32"}
        tables = {"cos": "*fp32", "sin": "*fp32"}
        for D in HEAD_DIMS:
            if triton_cannot_attend(D, dtype) is not None:
                continue
            rotate = {"qkv": p, **tables, "turned": p, **i}
            result[repr((rotate, D))] = Case(rotate_kernel, rotate, {"D": D, "BLOCK_S": ROTATE_ROWS}, 8)
            for S, target in itertools.product(positions, WGMMA + MMA_SYNC + AMD):
                how = plan(S, D, dtype, target)
                fixed = {"D": D, "PRECISION": "ieee" if target in AMD or dtype != torch.float32 else "tf32x3"}
                both = {"qkv": p, "lse": "*fp32", **i}
                back = {**both, **tables, "dout": p, "dqkv": p}
                runs: list[tuple[Any, dict[str, str], dict[str, Any], Tile]]
                if how.short:
                    constants = {"ROPE": True, "SAVE": True, "BLOCK_S": how.forward.n}
                    runs = [(short_forward_kernel, {**both, **tables, "out": p}, constants, how.forward)]
                else:
                    constants = {"QK": 2, "SAVE": True, **_blocks(how.forward)}
                    runs = [(long_forward_kernel, {**both, "qk": p, "out": p}, constants, how.forward)]
                if how.dq is None:
                    runs += [(short_backward_kernel, back, {"ROPE": True, **_blocks(how.backward)}, how.backward)]
                else:
                    back |= {"qk": p, "delta": "*fp32"}
                    runs += [
                        (dq_kernel, {**back, "out": p}, {"QK": 2, **_blocks(how.dq)}, how.dq),
                        (dkv_kernel, back, {"QK": 2, **_blocks(how.backward)}, how.backward),
                    ]
                for kernel, signature, constants, tile in runs:
                    case = Case(
                        kernel, signature, fixed | constants, tile.num_warps, tile.num_stages, matrix=True,
                        targets=(target,),
                    )  # fmt: skip
                    result[repr(case)] = case
    return list(result.values())

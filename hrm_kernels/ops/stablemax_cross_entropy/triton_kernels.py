"""Loss and gradient of a token from its logits, which each pass reads once.

With ``a = 1 + |x|``, ``s(x)`` is a or 1/a and ``s'(x)`` is 1 or 1/a². Two things keep float32 as exact as float64:

- ``loss = log1p(others / s_label)``, where others is the sum of s over all v except the label: nothing cancels when the
  label dominates (loss near 0). The label's gradient, ``-s'_label * others / (total * s_label)``, is a product for the
  same reason.
- The sum over tiles is compensated (Kahan). It adds no product, so fused multiply-adds cannot change it.
"""

import torch
import triton
import triton.language as tl

from hrm_kernels.backends import launcher
from hrm_kernels.tuning.ahead_of_time import Case, dtype_name

WIDEST = 2048  # columns of a tile: 8 warps load 8 elements a thread, 16 bytes of bfloat16; wider rows take several
ELEMENTS = 512  # of a tile of several rows: 4 a thread; 384 x 81 tokens with V = 11 make 972 programs


@triton.jit
def _log1p(y):
    """``log(1 + y)``, y >= 0, to 3 roundings: a factor restores what 1 + y rounds away (Kahan; HP-15C handbook)."""
    u = 1 + y
    lost = u == 1
    return tl.where(lost, y, tl.log(u) * tl.div_rn(y, tl.where(lost, 1.0, u - 1)))


@triton.jit
def forward_kernel(
    logits,
    labels,
    loss,
    total,
    others,
    largest,
    rows,
    ignore_index,
    V: tl.constexpr,
    ARGMAX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Rows ``[ROWS, V]``, over tiles of BLOCK_V columns: loss, total = sum s(x), others = total - s(x_label).

    With ARGMAX also the first column of the largest logit. NaN is never the largest, but makes the loss NaN. A label
    that is not a column makes it NaN, too.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    label = tl.load(labels + row, inside, 0)
    counted = inside & (label != ignore_index)
    total_of_others = tl.zeros([ROWS, BLOCK_V], tl.float32)
    excess = tl.zeros([ROWS, BLOCK_V], tl.float32)  # what rounding has added to total_of_others
    if ARGMAX:
        best = tl.full([ROWS, BLOCK_V], float("-inf"), tl.float32)
        at = tl.zeros([ROWS, BLOCK_V], tl.int32) + tl.arange(0, BLOCK_V)[None, :]
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        mask = inside[:, None] & (v < V)[None, :]
        x = tl.load(logits + row[:, None] * V + v[None, :], mask, 0.0).to(tl.float32)
        a = 1 + tl.abs(x)
        s = tl.where(mask & (v[None, :] != label[:, None]), tl.where(x < 0, 1 / a, a), 0.0) - excess
        t = total_of_others + s
        excess = (t - total_of_others) - s
        total_of_others = t
        if ARGMAX:
            larger = mask & (x > best)
            best = tl.where(larger, x, best)
            at = tl.where(larger, v[None, :], at)

    other = tl.sum(total_of_others, 1)
    x = tl.load(logits + row * V + label, counted & (label >= 0) & (label < V), float("nan")).to(tl.float32)
    a = 1 + tl.abs(x)
    s = tl.where(x < 0, tl.div_rn(1.0, a), a)
    tl.store(loss + row, tl.where(counted, _log1p(tl.div_rn(other, s)), 0.0), inside)
    tl.store(total + row, other + s, inside)
    tl.store(others + row, other, inside)
    if ARGMAX:
        first = tl.min(tl.where(best == tl.max(best, 1)[:, None], at, V), 1)
        tl.store(largest + row, first.to(tl.int64), inside)


@triton.jit
def backward_kernel(
    dloss,
    logits,
    labels,
    total,
    others,
    dlogits,
    rows,
    ignore_index,
    V: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Rows of block program_id(0), columns of block program_id(1): ``dloss * (s'/total - [v = label] s'/s)``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = row < rows
    mask = inside[:, None] & (v < V)[None, :]
    label = tl.load(labels + row, inside, 0)
    counted = inside & (label != ignore_index)
    g = tl.load(dloss + row, counted, 0.0)
    sum_s = tl.load(total + row, counted, 1.0)
    inverse = tl.div_rn(1.0, sum_s)
    share = tl.div_rn(tl.load(others + row, counted, 0.0), sum_s)  # of all but the label
    x = tl.load(logits + row[:, None] * V + v[None, :], mask, 0.0).to(tl.float32)
    r = 1 / (1 + tl.abs(x))
    root = tl.where(x < 0, r, 1.0)  # of s'
    rest = root * (root * inverse[:, None])  # s' itself could underflow
    own = -r * share[:, None]  # s'/s = r on both sides of 0
    gradient = tl.where(v[None, :] == label[:, None], own, rest) * g[:, None]
    gradient = tl.where(counted[:, None], gradient, 0.0)
    tl.store(dlogits + row[:, None] * V + v[None, :], gradient.to(dlogits.dtype.element_ty), mask)


def tile(V: int) -> dict[str, int]:
    """Rows, columns and warps of a program."""
    block = min(WIDEST, triton.next_power_of_2(V))
    return {"ROWS": max(1, ELEMENTS // block), "BLOCK_V": block, "num_warps": 8 if block == WIDEST else 4}


def _outputs(logits: torch.Tensor, argmax: bool) -> tuple[torch.Tensor, ...]:
    rows = logits.shape[:-1]
    loss, total, others = (logits.new_empty(rows, dtype=torch.float32) for _ in range(3))
    return loss, total, others, logits.new_empty(rows if argmax else (0,), dtype=torch.int64)


@launcher(
    "triton_stablemax_cross_entropy(Tensor logits, Tensor labels, int ignore_index, bool argmax)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    lambda logits, labels, ignore_index, argmax: _outputs(logits, argmax),
)
def forward(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, argmax: bool) -> tuple[torch.Tensor, ...]:
    """``(loss, total, others, largest)`` of contiguous inputs; without ``argmax`` the last is empty."""
    loss, total, others, largest = _outputs(logits, argmax)
    rows, V = loss.numel(), logits.shape[-1]
    config = tile(V)
    if rows:
        forward_kernel[(triton.cdiv(rows, config["ROWS"]),)](
            logits, labels, loss, total, others, largest, rows, ignore_index, V, argmax, **config, enable_fp_fusion=True
        )
    return loss, total, others, largest


@launcher(
    "triton_stablemax_cross_entropy_backward(Tensor dloss, Tensor logits, Tensor labels, Tensor total, Tensor others,"
    " int ignore_index) -> Tensor",
    lambda dloss, logits, labels, total, others, ignore_index: torch.empty_like(logits),
)
def backward(
    dloss: torch.Tensor,
    logits: torch.Tensor,
    labels: torch.Tensor,
    total: torch.Tensor,
    others: torch.Tensor,
    ignore_index: int,
) -> torch.Tensor:
    """The gradient of the logits; all contiguous."""
    dlogits = torch.empty_like(logits)
    rows, V = total.numel(), logits.shape[-1]
    config = tile(V)
    if rows:
        grid = (triton.cdiv(rows, config["ROWS"]), triton.cdiv(V, config["BLOCK_V"]))
        backward_kernel[grid](
            dloss, logits, labels, total, others, dlogits, rows, ignore_index, V, **config, enable_fp_fusion=True
        )
    return dlogits


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: a published vocabulary, and rows of one tile and of many."""
    result = []
    numbers = {"rows": "i32", "ignore_index": "i32"}
    for dtype, label in (
        (torch.bfloat16, "*i32"),
        (torch.bfloat16, "*i64"),
        (torch.float16, "*i64"),
        (torch.float32, "*i64"),
    ):
        p = f"*{dtype_name(dtype)}"
        forward_arguments = {"logits": p, "labels": label, "loss": "*fp32", "total": "*fp32", "others": "*fp32"}
        forward_arguments |= {"largest": "*i64", **numbers}
        backward_arguments = {"dloss": "*fp32", "logits": p, "labels": label, "total": "*fp32", "others": "*fp32"}
        backward_arguments |= {"dlogits": p, **numbers}
        for V in (11, 1000, 50000):
            sizes = {"V": V, **tile(V)}
            warps = sizes.pop("num_warps")
            for kernel, arguments, constants in (
                (forward_kernel, forward_arguments, {**sizes, "ARGMAX": False}),
                (forward_kernel, forward_arguments, {**sizes, "ARGMAX": True}),
                (backward_kernel, backward_arguments, sizes),
            ):
                result.append(Case(kernel, arguments, constants, warps, unaligned=("ignore_index",)))
    return result

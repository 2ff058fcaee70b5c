"""All parameters in one launch: a table on the device holds their addresses.

Addresses reach the device as arguments of a small kernel: there is no copy from the host, so nothing waits, and a CUDA
graph can contain it. The table is ``int64 [8, BLOCK_P]`` for P <= BLOCK_P parameters. Its rows are the addresses of the
parameter (0), gradient (1), exp_avg (2), exp_avg_sq (3), copy (4) and step count (7), the number of elements (5) and
the first chunk (6).
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrm_kernels.ops.adam_atan2.step import Step
from hrm_kernels.tuning.ahead_of_time import Case

CHUNK = 1024  # elements of a program: 4 warps, 8 elements a thread; 16 take 250 registers and leave 2 programs to an SM
NUM_WARPS = 4
VALUES = 32  # of a launch of write_kernel
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_NOWHERE = 2**62  # first chunk of the padding of a row


# fmt: off
@triton.jit(do_not_specialize=[f"v{i}" for i in range(VALUES)] + ["at"])
def write_kernel(
    table,
    at,
    v0: tl.int64, v1: tl.int64, v2: tl.int64, v3: tl.int64, v4: tl.int64, v5: tl.int64, v6: tl.int64,
    v7: tl.int64, v8: tl.int64, v9: tl.int64, v10: tl.int64, v11: tl.int64, v12: tl.int64, v13: tl.int64,
    v14: tl.int64, v15: tl.int64, v16: tl.int64, v17: tl.int64, v18: tl.int64, v19: tl.int64, v20: tl.int64,
    v21: tl.int64, v22: tl.int64, v23: tl.int64, v24: tl.int64, v25: tl.int64, v26: tl.int64, v27: tl.int64,
    v28: tl.int64, v29: tl.int64, v30: tl.int64, v31: tl.int64,
):
    """One program: table[at + i] = v_i."""
    values = (v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15, v16,
              v17, v18, v19, v20, v21, v22, v23, v24, v25, v26, v27, v28, v29, v30, v31)
    for i in tl.static_range(len(values)):
        tl.store(table + at + i, values[i])
# fmt: on


@triton.jit
def advance_kernel(
    table,
    scalars,
    lr,
    weight_decay,
    P,
    LOG2_BETA1: tl.constexpr,
    LOG2_BETA2: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program, all parameters: counts the step and writes scalars ``[3, BLOCK_P]``, which step_kernel explains.

    In float64: with t = 1 and beta = 0.999, 1 - beta^t has only 4 digits left in float32.
    """
    p = tl.arange(0, BLOCK_P)
    step = tl.load(table + 7 * BLOCK_P + p, p < P, 0).to(tl.pointer_type(tl.float32))
    count = tl.load(step, p < P, 1.0) + 1
    tl.store(step, count, p < P)
    t = count.to(tl.float64)
    rate = tl.load(lr).to(tl.float64) if LR_ON_DEVICE else tl.cast(lr, tl.float64)
    size = rate / (1 - tl.exp2(t * LOG2_BETA1))
    inverse_root = 1 / tl.sqrt(1 - tl.exp2(t * LOG2_BETA2))
    tl.store(scalars + p, size.to(tl.float32))
    tl.store(scalars + BLOCK_P + p, inverse_root.to(tl.float32))
    tl.store(scalars + 2 * BLOCK_P + p, (1 - rate * weight_decay + tl.zeros([BLOCK_P], tl.float64)).to(tl.float32))


@triton.jit
def _atan2(y, x):
    """For x >= 0, to 2e-7 relative. The polynomial is that of atanf in Cephes, for arguments up to tan(pi / 8)."""
    a = tl.abs(y)
    large = tl.maximum(a, x)
    ratio = tl.minimum(a, x) / tl.where(large == 0, 1.0, large)
    ratio = tl.where((a == x) & (a > 0), 1.0, ratio)  # infinite both, too
    beyond = ratio > 0.41421356237
    z = tl.where(beyond, (ratio - 1) / (ratio + 1), ratio)
    w = z * z
    odd = ((8.05374449538e-2 * w - 1.38776856032e-1) * w + 1.99777106478e-1) * w - 3.33329491539e-1
    angle = odd * w * z + z + tl.where(beyond, 0.78539816339744831, 0.0)
    angle = tl.where(a > x, 1.5707963267948966 - angle, angle)
    return tl.where(y < 0, -angle, tl.where(y == y, angle, y))


@triton.jit
def _update(
    p, g, m, v, copy, i, numel, size, inverse_root, keep, gain1, beta2, gain2, COPY: tl.constexpr, WHOLE: tl.constexpr
):
    """Elements i; WHOLE: none is beyond numel, so that loads need no mask and stay vectors."""
    mask = None if WHOLE else i < numel
    gradient = tl.load(g + i, mask).to(tl.float32)
    mean = tl.load(m + i, mask).to(tl.float32)
    mean += gain1 * (gradient - mean)
    square = tl.load(v + i, mask).to(tl.float32) * beta2 + gain2 * gradient * gradient
    new = tl.load(p + i, mask).to(tl.float32) * keep - size * _atan2(mean, tl.sqrt_rn(square) * inverse_root)
    tl.store(m + i, mean.to(m.dtype.element_ty), mask)
    tl.store(v + i, square.to(v.dtype.element_ty), mask)
    new = new.to(p.dtype.element_ty)
    tl.store(p + i, new, mask)
    if COPY is not None:
        tl.store(copy + i, new.to(COPY), mask)


@triton.jit
def step_kernel(
    table,
    scalars,
    size,
    inverse_root,
    keep,
    gain1,
    beta2,
    gain2,
    DTYPE: tl.constexpr,
    COPY: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Chunk program_id(0) of all parameters' elements, counted through: it belongs to the last that starts before it.

    m += gain1 (g - m); v = beta2 v + gain2 g²; p = keep p - size atan2(m, sqrt(v) inverse_root); copy = p.
    ON_DEVICE: size, inverse_root and keep, which differ with the step counts, come from scalars ``[3, BLOCK_P]``.
    ALIGNED: all addresses are multiples of 16.
    """
    chunk = tl.program_id(0)
    first_chunks = tl.load(table + 6 * BLOCK_P + tl.arange(0, BLOCK_P))
    parameter = tl.sum((first_chunks <= chunk).to(tl.int32)) - 1
    entry = table + parameter
    p = tl.load(entry).to(tl.pointer_type(DTYPE))
    g = tl.load(entry + BLOCK_P).to(tl.pointer_type(DTYPE))
    m = tl.load(entry + 2 * BLOCK_P).to(tl.pointer_type(DTYPE))
    v = tl.load(entry + 3 * BLOCK_P).to(tl.pointer_type(DTYPE))
    copy = p
    if COPY is not None:
        copy = tl.load(entry + 4 * BLOCK_P).to(tl.pointer_type(COPY))
    if ALIGNED:
        p, g, m, v = tl.multiple_of(p, 16), tl.multiple_of(g, 16), tl.multiple_of(m, 16), tl.multiple_of(v, 16)
        copy = tl.multiple_of(copy, 16)
    numel = tl.load(entry + 5 * BLOCK_P)
    start = (chunk - tl.load(entry + 6 * BLOCK_P)) * CHUNK
    if ON_DEVICE:
        size = tl.load(scalars + parameter)
        inverse_root = tl.load(scalars + BLOCK_P + parameter)
        keep = tl.load(scalars + 2 * BLOCK_P + parameter)
    i = start + tl.arange(0, CHUNK)
    if start + CHUNK <= numel:
        _update(p, g, m, v, copy, i, numel, size, inverse_root, keep, gain1, beta2, gain2, COPY, True)
    else:
        _update(p, g, m, v, copy, i, numel, size, inverse_root, keep, gain1, beta2, gain2, COPY, False)


class Table:
    """The table of one set of parameters, and the values of its rows."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.block = triton.next_power_of_2(max(VALUES, len(params)))
        self.values = torch.empty(8, self.block, dtype=torch.int64, device=params[0].device)
        self.scalars = torch.empty(3, self.block, dtype=torch.float32, device=params[0].device)
        self.rows: dict[int, list[int]] = {}
        numels = [p.numel() for p in params]
        ends = list(accumulate(triton.cdiv(numel, CHUNK) for numel in numels))
        self.chunks = ends[-1]
        self.write(5, numels)
        self.write(6, [0, *ends[:-1]])

    def write(self, row: int, values: list[int]) -> None:
        """Write ``values`` to row ``row``, unless it has them already."""
        if self.rows.get(row) == values:
            return
        self.rows[row] = values
        full = values + [_NOWHERE] * (self.block - len(values))
        for at in range(0, self.block, VALUES):
            write_kernel[(1,)](self.values, row * self.block + at, *full[at : at + VALUES], num_warps=1)

    def write_addresses(self, tensors: dict[int, Sequence[Tensor]]) -> bool:
        """Write addresses to rows; returns whether all are multiples of 16."""
        aligned = True
        for row, these in tensors.items():
            addresses = [x.data_ptr() for x in these]
            aligned = aligned and not any(address % 16 for address in addresses)
            self.write(row, addresses)
        return aligned


def _table(step: Step) -> Table:
    params, tables = step.params, step.tables
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        # a table of the graph's own, which every replay fills again: steps outside the graph write to another table
        table = Table(params)
        tables.setdefault("captured", []).append(table)
        return table
    key = tuple((id(p), p.numel()) for p in params)
    if key not in tables:
        tables[key] = Table(params)
    return tables[key]


def run(step: Step) -> None:
    """As the op; all contiguous. Two launches if capturable, else one for each step count (usually one)."""
    if step.capturable:
        on_device = isinstance(step.lr, Tensor) and step.lr.device == step.params[0].device
        table = _table(step)
        table.write_addresses({7: step.steps})
        advance_kernel[(1,)](
            table.values,
            table.scalars,
            step.lr if on_device else float(step.lr),
            float(step.weight_decay),
            len(step.params),
            *(_log2(beta) for beta in step.betas),
            on_device,
            table.block,
            num_warps=1,
            enable_fp_fusion=True,
        )
        _launch(table, step, (0.0, 0.0, 0.0))
    else:
        rate = float(step.lr)  # of a tensor on the CPU: nothing to wait for
        torch._foreach_add_(list(step.steps), 1)
        counts = [int(count) for count in step.steps]
        for count in sorted(set(counts)):
            some = step.of([index for index, other in enumerate(counts) if other == count])
            scalars = (
                rate / (1 - step.betas[0] ** count),
                (1 - step.betas[1] ** count) ** -0.5,
                1 - rate * step.weight_decay,
            )
            _launch(_table(some), some, scalars)
    step.count_writes()


def _log2(beta: float) -> float:
    return math.log2(beta) if beta else -1e300  # beta^t = 0


def _launch(table: Table, step: Step, scalars: tuple[float, float, float]) -> None:
    rows = {0: step.params, 1: step.grads, 2: step.exp_avgs, 3: step.exp_avg_sqs}
    if step.copies is not None:
        rows[4] = step.copies
    aligned = table.write_addresses(rows)
    beta1, beta2 = step.betas
    if table.chunks:
        step_kernel[(table.chunks,)](
            table.values,
            table.scalars,
            *scalars,
            1 - beta1,
            beta2,
            1 - beta2,
            DTYPE=_TYPES[step.params[0].dtype],
            COPY=None if step.copies is None else _TYPES[step.copies[0].dtype],
            ON_DEVICE=step.capturable,
            ALIGNED=aligned,
            BLOCK_P=table.block,
            CHUNK=CHUNK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )


def cases() -> list[Case]:
    """The launches that the ahead-of-time gate compiles: float32 with and without a copy, and bfloat16."""
    values = {f"v{i}": "i64" for i in range(VALUES)}
    result = [Case(write_kernel, {"table": "*i64", "at": "i32", **values}, num_warps=1)]
    block = 64  # the 27M model has 34 parameters
    for on_device in (False, True):
        arguments = {"table": "*i64", "scalars": "*fp32", "lr": "*fp32" if on_device else "fp32"}
        arguments |= {"weight_decay": "fp32", "P": "i32"}
        logs = {"LOG2_BETA1": _log2(0.9), "LOG2_BETA2": _log2(0.95)}
        constants: dict[str, Any] = {**logs, "LR_ON_DEVICE": on_device, "BLOCK_P": block}
        result.append(Case(advance_kernel, arguments, constants, num_warps=1, unaligned=("P",)))
    scalars = dict.fromkeys(("size", "inverse_root", "keep", "gain1", "beta2", "gain2"), "fp32")
    for dtype, copy, aligned in (
        (tl.float32, None, True),
        (tl.float32, tl.bfloat16, True),
        (tl.float32, tl.bfloat16, False),
        (tl.bfloat16, None, True),
    ):
        for on_device in (False, True):
            constants = {"DTYPE": dtype, "COPY": copy, "ON_DEVICE": on_device, "ALIGNED": aligned}
            constants |= {"BLOCK_P": block, "CHUNK": CHUNK}
            result.append(Case(step_kernel, {"table": "*i64", "scalars": "*fp32", **scalars}, constants, NUM_WARPS))
    return result

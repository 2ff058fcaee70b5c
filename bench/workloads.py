"""Workloads of single ops and optimisers: at the published width, and small ones for checkers of memory and races."""

from collections.abc import Iterator
from typing import Any

import torch

import hrm_kernels as k
from bench.costs import adam_atan2_cost, op_cost, sparse_sign_sgd_cost
from bench.inputs import OPS, adam_atan2_arguments, op_arguments, sparse_sign_sgd_arguments
from bench.sizes import Size
from bench.workload import Workload


def op_workload(
    op: str, size: Size, backward: bool = False, name: str | None = None, itemsize: int = 2, **options: Any
) -> Workload:
    """A public op of ``hrm_kernels``; ``options`` are other fields of :class:`Workload`."""
    return Workload(
        name or f"{op} {size.batch} x {size.positions}{' + backward' if backward else ''}",
        lambda device, dtype, seed: op_arguments(op, size, device, dtype, seed),
        getattr(k, op),
        backward,
        op_cost(op, size, backward, itemsize),
        kind=op,
        batch=size.batch,
        positions=size.positions,
        **options,
    )


def adam_atan2(blocks: int = 8) -> Workload:
    """A step of AdamATan2 on the matrices of ``blocks`` published blocks."""
    size = Size(1, 1)
    D, inner = size.width, size.inner
    shapes = [(3 * D, D), (D, D), (2 * inner, D), (D, inner)] * blocks
    return Workload(
        "AdamATan2",
        lambda device, dtype, seed: adam_atan2_arguments(shapes, device, seed),
        _step,
        cost=adam_atan2_cost(blocks * size.block_weights),
        is_compiled=False,
        is_checked=False,  # it works in place: tests/hrm_kernels/test_optim.py checks it
        kind="AdamATan2",
    )


def sparse_sign_sgd(rows: int, table: int = 1000) -> Workload:
    """A step of SparseSignSGD on ``rows`` rows of a puzzle embedding."""
    width = Size(rows, 0).width
    return Workload(
        "SparseSignSGD",
        lambda device, dtype, seed: sparse_sign_sgd_arguments(rows, table, width, device, seed),
        _step,
        cost=sparse_sign_sgd_cost(rows, width),
        is_compiled=False,
        is_checked=False,  # as above
        kind="SparseSignSGD",
        batch=rows,
    )


def small_workloads(dtype: torch.dtype, quick: bool = False) -> Iterator[Workload]:
    """Every op at awkward sizes, with gradients where it has them; in float32 also the optimisers."""
    sizes = [(2, 17, 128, 2), (1, 82, 128, 4), (3, 129, 256, 2)]
    if not quick:
        sizes += [(1, 1, 64, 2), (2, 81, 384, 6), (1, 128, 512, 8), (1, 901, 128, 2)]
    for B, S, width, heads in sizes:
        size = Size(B, S, width, heads, inner=3 * width, layers=2, vocabulary=13)
        for op in OPS:
            name = f"{op} {B} x {S} x {width}, {heads} heads"
            yield op_workload(op, size, k.specs()[op].differentiates, name)
    if dtype is torch.float32:
        shapes = [(64, 96), (7,), (0,), (1,)]
        yield Workload("AdamATan2", lambda device, dtype, seed: adam_atan2_arguments(shapes, device, seed), _step)
        yield Workload(
            "SparseSignSGD",  # 33 rows of 10 identifiers: they repeat
            lambda device, dtype, seed: sparse_sign_sgd_arguments(33, 10, 96, device, seed),
            _step,
        )


def _step(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    optimizer.step()
    return parameters

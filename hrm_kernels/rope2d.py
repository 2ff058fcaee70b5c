"""Rotary positions on a board: half of a head turns with the row, the other half with the column.

Attention kernels turn the pairs (i, i + d/2) of a head. In 2D RoPE, as published, the pairs of each half are
(i, i + d/4): those of the first half turn with the row, those of the second half with the column. Exchanging the two
middle quarters of every q and k head makes them pairs (i, i + d/2), and does not change the products of q and k. The
weights keep the published order; their rows are exchanged where they are used.
"""

from typing import Any

import torch

from hrm_kernels.casts import active, cast

__all__ = ["head_order", "reordered", "rope_tables_2d"]


def rope_tables_2d(
    height: int,
    width: int,
    head_dim: int,
    theta: float = 10000.0,
    prefix: int = 0,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(cos, sin)``, each ``[prefix + height * width, head_dim]`` float32, for q and k heads in :func:`head_order`.

    The frequencies are those of a head of half the width. The ``prefix`` positions before the board do not turn.

    Source: Equilibrium Reasoners (arXiv 2605.21488), the published code.
    """
    if head_dim % 4:
        raise ValueError(f"rope_tables_2d: head_dim is {head_dim}, expected a multiple of 4: each half turns pairs")
    half = head_dim // 2
    frequencies = 1 / theta ** (torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    rows, columns = (
        torch.outer(torch.arange(size, dtype=torch.float32, device=device), frequencies) for size in (height, width)
    )
    angles = torch.cat((rows.repeat_interleave(width, 0), columns.repeat(height, 1)), 1).repeat(1, 2)
    angles = torch.cat((angles.new_zeros(prefix, head_dim), angles))
    return angles.cos(), angles.sin()


def head_order(num_heads: int, head_dim: int) -> torch.Tensor:
    """The rows ``[3 H d]`` of packed heads with the middle quarters of q and k exchanged; its own inverse."""
    rows = torch.arange(3 * num_heads * head_dim).view(3, num_heads, 4, head_dim // 4)
    rows[:2] = rows[:2, :, [0, 2, 1, 3]].clone()
    return rows.flatten()


def reordered(weight: torch.Tensor, dtype: torch.dtype, rows: torch.Tensor) -> torch.Tensor:
    """``cast(weight, dtype)[rows]``, differentiable, for ``rows`` that are their own inverse.

    Inside :func:`hrm_kernels.frozen_weights` the copy is made once, like that of :func:`hrm_kernels.casts.cast`.
    """
    values, frozen = cast(weight, dtype), active()
    if frozen is None or torch.compiler.is_compiling() or not frozen.knows([values]) or values.is_cuda:
        return values.index_select(0, rows)
    with torch.inference_mode(False), torch.no_grad():
        key = (values.data_ptr(), values.shape, dtype)
        copy = frozen.packed(("reordered", key), [values], lambda: values.detach().index_select(0, rows))
    frozen.add(copy)
    if torch.is_grad_enabled() and values.requires_grad:
        return _Reordered.apply(values, copy, rows)
    return copy


class _Reordered(torch.autograd.Function):
    """``apply(values, values[rows], rows)``: the copy's memory, a gradient in the order of ``values``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: torch.Tensor, copy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return copy.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        return gradient.index_select(0, rows), None, None

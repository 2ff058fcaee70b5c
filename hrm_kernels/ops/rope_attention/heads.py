"""The arguments of attention beside the projections, and the reasons why kernels cannot serve them."""

from typing import NamedTuple

import torch


class Heads(NamedTuple):
    """How attention splits packed projections into heads, and turns them.

    Attributes:
        cos, sin: RoPE tables ``[>= S, d]``, or None for both to leave the rotation out.
        num_heads: H; 0 for blocks that mix positions instead.
    """

    cos: torch.Tensor | None
    sin: torch.Tensor | None
    num_heads: int

    @property
    def mixing(self) -> bool:
        """Whether the blocks mix positions, without attention."""
        return self.num_heads == 0

    def contiguous(self) -> "Heads":
        """With tables as GPU kernels read them."""
        if self.cos is None or self.sin is None:
            return self
        return Heads(self.cos.contiguous(), self.sin.contiguous(), self.num_heads)

    def tables(self) -> list[tuple[str, torch.Tensor]]:
        """The tables with their names; empty without rotation."""
        return [(name, table) for name, table in (("cos", self.cos), ("sin", self.sin)) if table is not None]


HEAD_DIMS = (64, 32, 128)
"""Widths of heads that the Triton kernels are for, the published one first."""


def triton_cannot_attend(head_dim: int, dtype: torch.dtype) -> str | None:
    """Why there are no Triton kernels for heads of this width and dtype; None where there are."""
    if head_dim not in HEAD_DIMS:
        return f"its attention is for head_dim 32, 64 and 128, not {head_dim}"
    if head_dim == 128 and dtype is torch.float32:
        return "its attention has no float32 kernels for head_dim 128, whose tiles don't fit into registers"
    return None


def tables_need_gradients(heads: Heads, kernels: str = "its kernels") -> str | None:
    """Why kernels without gradients of the tables cannot serve the call; None where no table needs a gradient."""
    for name, table in heads.tables():
        if table.requires_grad and torch.is_grad_enabled():
            return f"{kernels} have no gradient for {name}; detach it"
    return None


def gpu_cannot_read_tables(heads: Heads, kernels: str = "its kernels") -> str | None:
    """Why GPU kernels cannot serve the call because of its tables; None where they can."""
    for name, table in heads.tables():
        if table.dtype is not torch.float32:
            return f"{kernels} read float32 tables, and {name} is {table.dtype}; convert it with .float()"
    return tables_need_gradients(heads, kernels)

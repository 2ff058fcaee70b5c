"""Blocks on the CPU library: one call forward, one backward, for all blocks of a module.

For the backward a block with attention saves, per token and in float32, x, attention, x1 (D each), qkv (3 D), gate_up
(2 I), two numbers per token and one per head: 25 KB for D = 512, I = 1536. A block that mixes positions saves x, x1,
gate_up, a number per token, and one per channel of each row of the batch; it computes its mixing again. With
``recompute`` both save only x (2 KB), and run forward again in the backward. The inputs of a call are saved too, for
second-order gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.autodiff import each, first_order, is_negated
from hrm_kernels.backends import is_traced, launcher
from hrm_kernels.damping import Damping, Rows, by_row, damp
from hrm_kernels.ops.rope_attention.cpu_kernels import table
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.packing import Packed, pack
from hrm_kernels.ops.transformer_block.reference import run_blocks
from hrm_kernels.recycling import empty


@launcher(
    "cpu_blocks_infer(Tensor x, Tensor? injection, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "float eps) -> Tensor",
    lambda x, *rest: x.new_empty(x.shape),
    grouped=(3, Heads),
)
def infer(
    x: Tensor,
    injection: Tensor | None,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
) -> Tensor:
    """All blocks over ``x + injection``, ``[B, S, D]``, contiguous."""
    return _infer(x, injection, weights, heads, eps)


@launcher(
    "cpu_damped_blocks_infer(Tensor x, Tensor injection, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "float eps, Tensor row_weights, float noise_scale, Tensor seeds, Tensor steps) -> Tensor",
    lambda x, *rest: x.new_empty(x.shape),
    grouped=(3, Heads),
)
def infer_damped(
    x: Tensor,
    injection: Tensor,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    *rows: Any,
) -> Tensor:
    """x moved towards the result of all blocks over ``x + injection``; ``rows`` are the fields of a ``Rows``."""
    return _infer(x, injection, weights, heads, eps, Rows(*rows))


def _infer(
    x: Tensor,
    injection: Tensor | None,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    rows: Rows | None = None,
) -> Tensor:
    packed, out = pack(weights, heads.num_heads), torch.empty_like(x)
    run = packed.module.infer_blocks if rows is None else packed.module.damped_infer_blocks
    run(
        x.detach(),
        None if injection is None else injection.detach(),
        packed.forward,
        packed.layers,
        table(heads.cos),
        table(heads.sin),
        out,
        *packed.sizes(),
        eps,
        *(rows or ()),
        torch.get_num_threads(),
    )
    return out


def saved_size(x: Tensor, weights: Sequence[Tensor], num_heads: int, recompute: bool) -> int:
    """How many floats forward saves, as csrc/cpu/transformer_block.cpp lays them out; sizes may be symbolic."""
    module = native.load("cpu").module
    bfloat16 = x.dtype is torch.bfloat16
    width, tile = module.panel_width(bfloat16), module.tile_rows(bfloat16)

    def padded(count: int) -> int:
        return -(-count // width) * width

    (batch, positions, dim), layers = x.shape, len(weights) // 4
    inner, rows = weights[3].shape[1], batch * positions
    stride = (rows + tile) // 2 * 2 + 1

    def floats(columns: int) -> int:
        return columns * stride * module.element_bytes(bfloat16) // 4

    if recompute:
        return layers * floats(padded(dim))
    columns, numbers = 2 * padded(dim) + 2 * padded(inner), padded(rows)
    if num_heads:
        columns += 4 * num_heads * padded(weights[0].shape[0] // (3 * num_heads))
        numbers += padded(rows) + padded(rows * num_heads)
    else:
        numbers += batch * padded(dim)
    return layers * (floats(columns) + numbers) + floats(padded(dim))


@launcher(
    "cpu_blocks_forward(Tensor x, Tensor? injection, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "float eps, bool recompute) -> (Tensor, Tensor)",
    lambda x, injection, weights, heads, eps, recompute: (
        x.new_empty(x.shape),
        x.new_empty(saved_size(x, weights, heads.num_heads, recompute), dtype=torch.float32),
    ),
    grouped=(3, Heads),
)
def forward(
    x: Tensor,
    injection: Tensor | None,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """The same result, and the tensor that :func:`backward` needs."""
    return _forward(pack(weights, heads.num_heads), x, injection, weights, heads, eps, recompute)


@launcher(
    "cpu_damped_blocks_forward(Tensor x, Tensor injection, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "float eps, bool recompute, Tensor row_weights, float noise_scale, Tensor seeds, Tensor steps) -> (Tensor, Tensor)",
    lambda x, injection, weights, heads, eps, recompute, *rows: (
        x.new_empty(x.shape),
        x.new_empty(saved_size(x, weights, heads.num_heads, recompute), dtype=torch.float32),
    ),
    grouped=(3, Heads),
)
def forward_damped(
    x: Tensor,
    injection: Tensor,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    recompute: bool,
    *rows: Any,
) -> tuple[Tensor, Tensor]:
    """The result of :func:`infer_damped`, and the tensor that :func:`backward` needs."""
    return _forward(pack(weights, heads.num_heads), x, injection, weights, heads, eps, recompute, Rows(*rows))


def _forward(
    packed: Packed,
    x: Tensor,
    injection: Tensor | None,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    recompute: bool,
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x)
    saved = empty(saved_size(x, weights, heads.num_heads, recompute))
    run = packed.module.blocks_forward if rows is None else packed.module.damped_blocks_forward
    run(
        x.detach(),
        None if injection is None else injection.detach(),
        packed.forward,
        packed.layers,
        table(heads.cos),
        table(heads.sin),
        out,
        recompute,
        saved,
        *packed.sizes(),
        eps,
        *(rows or ()),
        torch.get_num_threads(),
    )
    return out, saved


@launcher(
    "cpu_blocks_backward(Tensor dout, Tensor saved, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "float eps, bool recompute, bool[] wanted) -> Tensor[]",
    lambda dout, saved, weights, heads, eps, recompute, wanted: [
        dout.new_empty(dout.shape),
        *(weight.new_empty(weight.shape if want else 0) for weight, want in zip(weights, wanted)),
    ],
    grouped=(3, Heads),
)
def backward(
    dout: Tensor,
    saved: Tensor,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    recompute: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x (and of the injection: the same) and of the ``wanted`` weights; empty tensors for the others."""
    return _backward(pack(weights, heads.num_heads), dout, saved, weights, heads, eps, recompute, wanted)


def _backward(
    packed: Packed,
    dout: Tensor,
    saved: Tensor,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    recompute: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    dx = torch.empty_like(dout)
    dweights = [empty(*(weight.shape if want else (0,)), dtype=weight.dtype) for weight, want in zip(weights, wanted)]
    if not dout.numel():  # the kernel writes nothing
        dweights = [gradient.zero_() for gradient in dweights]
    packed.module.blocks_backward(
        dout.detach(),
        packed.forward,
        packed.backward(weights),
        packed.layers,
        table(heads.cos),
        table(heads.sin),
        recompute,
        saved,
        dx,
        [gradient if want else None for gradient, want in zip(dweights, wanted)],
        *packed.sizes(),
        eps,
        torch.get_num_threads(),
    )
    return [dx, *dweights]


def _again(ctx: Any) -> tuple[Any, tuple[Any, ...]]:
    def function(x, injection, heads, eps, recompute, damping, *weights):  # type: ignore
        return damp(x, run_blocks(x if injection is None else x + injection, weights, heads, eps), damping)

    _, x, injection, *weights = ctx.saved_tensors
    return function, (x, injection, *ctx.constants, *weights)


class Blocks(torch.autograd.Function):
    """``apply(x, injection or None, heads, eps, recompute, damping or None, *weights)``: all blocks, one node."""

    @staticmethod
    def forward(ctx: Any, x, injection, heads, eps, recompute, damping, *weights):  # type: ignore
        arguments = x, injection, weights, heads, eps, recompute
        rows = None if damping is None else by_row(damping, x)
        if is_traced():
            ctx.packed = None
            out, saved = forward(*arguments) if rows is None else forward_damped(*arguments, *rows)
        else:  # packed once for both directions
            ctx.packed = pack(weights, heads.num_heads)
            out, saved = _forward(ctx.packed, *arguments, rows)
        ctx.save_for_backward(saved, x, injection, *weights)  # x only for second-order gradients
        ctx.constants = heads, eps, recompute, damping
        ctx.row_weights = None if rows is None else rows.weights
        ctx.injected = injection is not None
        return out

    @staticmethod
    @first_order(_again)
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        saved, _, _, *weights = ctx.saved_tensors
        wanted, dout = list(ctx.needs_input_grad[6:]), dout.resolve_neg().contiguous()
        heads, eps, recompute, _ = ctx.constants
        kept = None  # the gradient of x past the blocks
        if ctx.row_weights is not None:
            weight = ctx.row_weights.view(-1, 1, 1)
            kept = ((1 - weight) * dout).to(dout.dtype) if ctx.needs_input_grad[0] else None
            dout = (weight * dout).to(dout.dtype)
        if ctx.packed is None or is_traced():
            dx, *dweights = backward(dout, saved, weights, heads, eps, recompute, wanted)
        else:
            dx, *dweights = _backward(ctx.packed, dout, saved, weights, heads, eps, recompute, wanted)
        return (
            dx if kept is None else dx + kept,
            dx if ctx.injected else None,
            *(None,) * 4,
            *(gradient if want else None for gradient, want in zip(dweights, wanted)),
        )


def blocks(
    x: Tensor,
    injection: Tensor | None,
    weights: Sequence[Tensor],
    heads: Heads,
    eps: float,
    recompute: bool,
    damping: Damping | None = None,
) -> Tensor:
    """All blocks over ``x + injection``, damped if ``damping`` says so, for which there is an injection.

    Saves activations only if an argument needs a gradient.
    """
    if heads.mixing and x.shape[1] == 0:  # nothing to compute
        return damp(x, run_blocks(x if injection is None else x + injection, weights, heads, eps), damping)
    x = x.contiguous()
    injection = None if injection is None else injection.contiguous()
    if torch.compiler.is_compiling():  # torch.compile refuses the same tensor twice
        injection = x.view_as(x) if injection is x else injection
        weights = [w.view_as(w) if any(w is v for v in weights[:i]) else w for i, w in enumerate(weights)]
    inputs = (x, *weights) if injection is None else (x, injection, *weights)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        if not is_traced() and is_negated(inputs):  # as a launcher does
            x, injection, weights = each(torch.Tensor.resolve_neg, (x, injection, weights))
        return Blocks.apply(x, injection, heads, eps, recompute, damping, *weights)
    if damping is not None and injection is not None:
        return infer_damped(x, injection, weights, heads, eps, *by_row(damping, x))
    return infer(x, injection, weights, heads, eps)

"""Blocks with Triton launches and library matrix products: forward, backward, and forward without gradients.

For the backward a block saves, per token, x, attention, u1, x1, u2 (D each), qkv (3 D) and gate_up (2 I) in the dtype
of x, and in float32 1/rms twice and a log-sum-exp per head: 14 KB for D = 512, I = 1536 in bfloat16. With ``recompute``
it saves only x (1 KB), and runs forward again in the backward.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hrm_kernels import tuning
from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import requested
from hrm_kernels.ops.add_rms_norm import triton_kernels as norm
from hrm_kernels.ops.rope_attention import gpu_kernels as attention
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.swiglu import triton_kernels as swiglu
from hrm_kernels.ops.transformer_block import triton_eight_bit as eight_bit
from hrm_kernels.ops.transformer_block import triton_kernels as fused
from hrm_kernels.ops.transformer_block import triton_mixing_block
from hrm_kernels.ops.transformer_block import triton_persistent as persistent
from hrm_kernels.ops.transformer_block.eight_bit import FORMATS, Quantized
from hrm_kernels.ops.transformer_block.reference import run_blocks

Weights = Sequence[torch.Tensor]
"""qkv, o, gate_up, down of each block in turn."""


class Shared(NamedTuple):
    """The arguments that all blocks of a pass share.

    Attributes:
        batch: B.
        heads: with contiguous tables.
        eps: of the norms.
        automatic: no backend was requested, so the tuning table also chooses the kernels of attention.
    """

    batch: int
    heads: Heads
    eps: float
    automatic: bool = False


def _by_row(tokens: torch.Tensor, shared: Shared) -> torch.Tensor:
    """``[M, C] -> [B, S, C]``; without tokens S is 0."""
    return tokens.view(shared.batch, -1 if tokens.shape[0] else 0, tokens.shape[1])


def _attend(qkv: torch.Tensor, shared: Shared, save: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = attention.forward(_by_row(qkv, shared), shared.heads, save, shared.automatic)
    return out.view(qkv.shape[0], qkv.shape[1] // 3), lse


def forward_block(x: torch.Tensor, weights: Weights, shared: Shared) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """``x [M, D]`` -> the output of the block and the tensors that its backward needs."""
    qkv_weight, o, gate_up_weight, down = weights
    qkv = x @ qkv_weight.t()
    attended, lse = _attend(qkv, shared, True)
    x1, u1, rstd1 = norm.forward(x, attended @ o.t(), shared.eps, True)
    gate_up = x1 @ gate_up_weight.t()
    out, u2, rstd2 = norm.forward(x1, swiglu.forward(gate_up) @ down.t(), shared.eps, True)
    return out, (x, qkv, lse, attended, u1, rstd1, x1, gate_up, u2, rstd2)


def backward_block(
    dout: torch.Tensor, saved: Sequence[torch.Tensor], weights: Weights, shared: Shared
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Gradients of x and of the four weights."""
    x, qkv, lse, attended, u1, rstd1, x1, gate_up, u2, rstd2 = saved
    qkv_weight, o, gate_up_weight, down = weights
    du2 = norm.backward(dout, u2, rstd2)
    dgate_up, hidden = swiglu.backward(du2 @ down, gate_up, True)
    ddown = du2.t() @ hidden
    du1 = norm.backward(du2.addmm_(dgate_up, gate_up_weight), u1, rstd1)  # in place: addmm copies du2 first
    dweight_o = du1.t() @ attended
    out, dout, packed = (_by_row(tokens, shared) for tokens in (attended, du1 @ o, qkv))
    dqkv = attention.backward(dout, packed, lse, out, shared.heads, shared.automatic).view(qkv.shape)
    return du1.addmm_(dqkv, qkv_weight), (dqkv.t() @ x, dweight_o, dgate_up.t() @ x1, ddown)


def _again(ctx: Any) -> tuple[Any, tuple[Any, ...]]:
    def function(x: torch.Tensor, shared: Shared, recompute: bool, *weights: torch.Tensor) -> torch.Tensor:
        return run_blocks(_by_row(x, shared), weights, shared.heads, shared.eps).view(x.shape)

    x, weights = ctx.saved_tensors[0], ctx.saved_tensors[-ctx.count :]
    return function, (x, ctx.shared, ctx.recompute, *weights)


class Blocks(torch.autograd.Function):
    """``apply(x [M, D], shared, recompute, *weights)``: all blocks of a pass in turn, one node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shared: Shared, recompute: bool, *weights: torch.Tensor) -> torch.Tensor:
        saved: list[torch.Tensor] = []
        for first in range(0, len(weights), 4):
            block_input = x
            x, kept = forward_block(x, weights[first : first + 4], shared)
            saved += (block_input,) if recompute else kept
        ctx.save_for_backward(*saved, *weights)
        ctx.shared, ctx.recompute, ctx.count = shared, recompute, len(weights)
        return x

    @staticmethod
    @first_order(_again)
    def backward(ctx: Any, dout: torch.Tensor) -> Any:  # type: ignore[override]
        tensors, shared = ctx.saved_tensors, ctx.shared
        saved, weights = tensors[: len(tensors) - ctx.count], tensors[len(tensors) - ctx.count :]
        per_block = len(saved) // (ctx.count // 4)
        gradients: tuple[torch.Tensor, ...] = ()
        dx = dout.contiguous()
        for block in reversed(range(ctx.count // 4)):
            matrices = weights[4 * block : 4 * block + 4]
            kept = saved[per_block * block : per_block * (block + 1)]
            if ctx.recompute:
                kept = forward_block(kept[0], matrices, shared)[1]
            dx, dweights = backward_block(dx, kept, matrices, shared)
            gradients = dweights + gradients
        return dx, None, None, *gradients


def infer(x: torch.Tensor, weights: Weights, shared: Shared) -> torch.Tensor:
    """All blocks without gradients, ``[M, D] -> [M, D]``, on the path of the tuning table for device and rows."""
    if torch.compiler.is_compiling():  # the table is not read while tracing
        chosen = tuning.default(x.dtype, x.shape[0])
    else:
        chosen = tuning.choose(x.device, x.dtype, x.shape[0])
    if chosen == "whole_row" and not fused.fits_a_row(x):  # the table was measured with the published sizes
        chosen = "fused_small"
    if chosen == "persistent" and persistent.cannot_run(x, weights[3].shape[1]) is not None:
        chosen = "fused"
    return PATHS[chosen](x, weights, shared)


def infer_library(x: torch.Tensor, weights: Weights, shared: Shared) -> torch.Tensor:
    """The library's matrix products, pointwise kernels between them: seven launches a block."""
    for first in range(0, len(weights), 4):
        qkv, o, gate_up, down = weights[first : first + 4]
        attended, _ = _attend(x @ qkv.t(), shared, False)
        x, _, _ = norm.forward(x, attended @ o.t(), shared.eps, False)
        x, _, _ = norm.forward(x, swiglu.forward(x @ gate_up.t()) @ down.t(), shared.eps, False)
    return x


def infer_fused(x: torch.Tensor, weights: Weights, shared: Shared, small: bool = False) -> torch.Tensor:
    """Pointwise steps inside the products, norms deferred into the next: five launches a block and one at the end."""
    eps = shared.eps
    u, sums = x, None  # the state is rstd * u if there are sums, else u
    for first in range(0, len(weights), 4):
        qkv, o, gate_up, down = weights[first : first + 4]
        attended, _ = _attend(fused.linear(u, qkv, sums, eps, small), shared, False)
        u, sums = fused.linear_residual(attended, o, u, sums, eps, small)
        hidden = fused.linear_swiglu(u, gate_up, sums, eps, small)
        u, sums = fused.linear_residual(hidden, down, u, sums, eps, small)
    assert sums is not None
    return fused.normalize(u, sums, eps)


def infer_persistent(x: torch.Tensor, weights: Weights, shared: Shared) -> torch.Tensor:
    """As :func:`infer_fused`, in larger tiles that one program per multiprocessor goes through."""
    eps = shared.eps
    u, sums = x, None
    for first in range(0, len(weights), 4):
        qkv, o, gate_up, down = weights[first : first + 4]
        attended, _ = _attend(persistent.linear(u, qkv, sums, eps), shared, False)
        u, sums = persistent.linear_residual(attended, o, u, sums, eps)
        hidden = persistent.linear_swiglu(u, gate_up, sums, eps)
        u, sums = persistent.linear_residual(hidden, down, u, sums, eps)
    assert sums is not None
    return fused.normalize(u, sums, eps)


def infer_whole_row(x: torch.Tensor, weights: Weights, shared: Shared) -> torch.Tensor:
    """Norms inside the preceding products, for few rows (:func:`fits_a_row`): five launches a block."""
    for first in range(0, len(weights), 4):
        qkv, o, gate_up, down = weights[first : first + 4]
        attended, _ = _attend(fused.linear(x, qkv, None, shared.eps, True), shared, False)
        x = fused.linear_norm(attended, o, x, shared.eps)
        x = fused.linear_norm(fused.linear_swiglu(x, gate_up, None, shared.eps, True), down, x, shared.eps)
    return x


PATHS: dict[str, Callable[[torch.Tensor, Weights, Shared], torch.Tensor]] = {
    "library": infer_library,
    "fused": infer_fused,
    "fused_small": lambda x, weights, shared: infer_fused(x, weights, shared, True),
    "whole_row": infer_whole_row,
    "persistent": infer_persistent,
}
"""The candidates of :mod:`hrm_kernels.tuning`."""


def quantized_weights(weights: Weights, name: str) -> list[Quantized]:
    """The weights of blocks in a format of 8 bits, for :func:`infer_eight_bit`: one launch each."""
    return [Quantized(*eight_bit.quantize(weight, None, 0.0, name)) for weight in weights]


def infer_eight_bit(
    x: torch.Tensor, weights: Weights, quantized: Sequence[Quantized], shared: Shared, name: str
) -> torch.Tensor:
    """As :func:`infer`, with products in a format of 8 bits where the tuning table does not find them slower."""
    if torch.compiler.is_compiling():
        chosen = tuning.default_eight_bit()
    else:
        chosen = tuning.choose_eight_bit(x.device, name, x.shape[0])
    if chosen == "off":
        return infer(x, weights, shared)
    if chosen not in eight_bit_paths(x, weights[3].shape[1], name):
        chosen = "fused"
    return EIGHT_BIT_PATHS[chosen](x, quantized, shared, name)


def _infer_eight_bit(
    x: torch.Tensor, weights: Sequence[Quantized], shared: Shared, name: str, persists: bool
) -> torch.Tensor:
    """A launch for each product, and one before it that writes its input in 8 bits: nine launches a block."""
    eps, dtype = shared.eps, x.dtype
    u, sums = x, None
    for first in range(0, len(weights), 4):
        qkv, o, gate_up, down = weights[first : first + 4]
        rows = eight_bit.quantize(u, sums, eps, name)
        attended, _ = _attend(eight_bit.linear(*rows, *qkv, dtype, persists), shared, False)
        rows = eight_bit.quantize(attended, None, eps, name)
        u, sums = eight_bit.linear_residual(*rows, *o, u, sums, eps, persists)
        hidden = eight_bit.linear_swiglu(*eight_bit.quantize(u, sums, eps, name), *gate_up, dtype, persists)
        rows = eight_bit.quantize(hidden, None, eps, name)
        u, sums = eight_bit.linear_residual(*rows, *down, u, sums, eps, persists)
    assert sums is not None
    return fused.normalize(u, sums, eps)


def infer_eight_bit_library(x: torch.Tensor, weights: Sequence[Quantized], shared: Shared, name: str) -> torch.Tensor:
    """The library's FP8 products, which multiply both scales in, and kernels between them that write 8 bits."""
    dtype = x.dtype

    def product(rows: Sequence[torch.Tensor], w: Quantized) -> torch.Tensor:
        values, scales = rows
        return torch._scaled_mm(values, w.values.t(), scales[:, None], w.scales[None], out_dtype=dtype)

    rows: Sequence[torch.Tensor] = eight_bit.quantize(x, None, 0.0, name)
    for first in range(0, len(weights), 4):
        qkv, o, gate_up, down = weights[first : first + 4]
        attended, _ = _attend(product(rows, qkv), shared, False)
        x, *rows = eight_bit.norm_quantize(
            x, product(eight_bit.quantize(attended, None, 0.0, name), o), shared.eps, name
        )
        hidden = eight_bit.quantize_swiglu(product(rows, gate_up), name)
        x, *rows = eight_bit.norm_quantize(x, product(hidden, down), shared.eps, name)
    return x


EIGHT_BIT_PATHS: dict[str, Callable[[torch.Tensor, Sequence[Quantized], Shared, str], torch.Tensor]] = {
    "fused": lambda x, weights, shared, name: _infer_eight_bit(x, weights, shared, name, False),
    "persistent": lambda x, weights, shared, name: _infer_eight_bit(x, weights, shared, name, True),
    "library": infer_eight_bit_library,
}
"""The candidates of :mod:`hrm_kernels.tuning` for products in 8 bits."""


def eight_bit_paths(x: torch.Tensor, inner: int, name: str) -> list[str]:
    """The names of :data:`EIGHT_BIT_PATHS` that can serve hidden states like ``x [M, D]``."""
    names = ["fused"]
    if eight_bit.cannot_persist(x, inner) is None:
        names.append("persistent")
    if FORMATS[name].dtype.is_floating_point and x.dtype is torch.bfloat16 and not (x.shape[1] % 16 or inner % 16):
        names.append("library")
    return names


def blocks(x: torch.Tensor, weights: Weights, heads: Heads, eps: float, recompute: bool) -> torch.Tensor:
    """``x [B, S, D]`` through all blocks; saves activations only if an argument needs a gradient."""
    if heads.mixing:
        return triton_mixing_block.blocks(x, weights, eps, recompute)
    flat = x.reshape(-1, x.shape[2]).contiguous()
    weights = [weight.contiguous() for weight in weights]
    shared = Shared(x.shape[0], heads.contiguous(), eps, requested() is None)
    if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights)):
        return Blocks.apply(flat, shared, recompute, *weights).view(x.shape)
    return infer(flat, weights, shared).view(x.shape)

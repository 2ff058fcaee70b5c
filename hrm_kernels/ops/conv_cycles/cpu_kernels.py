"""All updates in one call of the CPU library, on the same state, weights and workspace; one more for their gradients.

For the backward each block saves what a block without convolution does (:mod:`transformer_block.cpu_block`); the inside
of its ConvSwiGLU is computed again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrm_kernels import native, packing
from hrm_kernels.autodiff import each, first_order, is_negated
from hrm_kernels.backends import is_traced, launcher
from hrm_kernels.ops.conv_cycles import reference
from hrm_kernels.ops.conv_cycles.weights import blocks_of
from hrm_kernels.ops.rope_attention.cpu_kernels import table
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.cpu_block import saved_size
from hrm_kernels.recycling import empty

_EACH = 6
"""Weights of a block; the first four are matrices."""


class _Packed:
    """Blocks packed for the forward pass and, at the first backward, for gradients of inputs."""

    def __init__(self, weights: Sequence[Tensor], num_heads: int) -> None:
        self.module, self.num_heads, self.layers = native.load("cpu").module, num_heads, len(weights) // _EACH
        qkv, down = weights[0], weights[3]
        self.width, (dim, self.inner) = qkv.shape[0] // (3 * num_heads), down.shape
        size = self.module.conv_packed_size(dim, num_heads, self.width, self.inner, down.dtype is torch.bfloat16)
        self.size = self.layers * size
        self.forward = self._pack(weights, False)
        self._backward: Tensor | None = None

    def _pack(self, weights: Sequence[Tensor], backward: bool) -> Tensor:
        packed = empty(self.size)
        plain = [weight.detach().contiguous() for weight in weights]
        self.module.pack_conv_blocks(plain, self.num_heads, backward, packed, torch.get_num_threads())
        return packed

    def backward(self, weights: Sequence[Tensor]) -> Tensor:
        """The form that the backward reads; ``weights`` are those of the constructor."""
        if self._backward is None:
            self._backward = self._pack(weights, True)
        return self._backward

    def sizes(self) -> tuple[int, int, int]:
        """num_heads, the width of a head, I."""
        return self.num_heads, self.width, self.inner


def _pack(weights: Sequence[Tensor], num_heads: int) -> _Packed:
    """Packed now or before; see :mod:`hrm_kernels.packing`."""
    return packing.packed(weights, ("conv blocks", num_heads), lambda contiguous: _Packed(contiguous, num_heads))


@launcher(
    "cpu_conv_cycles(Tensor z, Tensor injection, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "int cycles, float eps) -> Tensor",
    lambda z, *rest: z.new_empty(z.shape),
    grouped=(3, Heads),
)
def infer(z: Tensor, injection: Tensor, weights: Sequence[Tensor], heads: Heads, cycles: int, eps: float) -> Tensor:
    """``[B, S, D]``, contiguous."""
    packed, out = _pack(weights, heads.num_heads), torch.empty_like(z)
    packed.module.conv_cycles(
        z.detach(),
        injection.detach(),
        packed.forward,
        packed.layers,
        table(heads.cos),
        table(heads.sin),
        out,
        *packed.sizes(),
        cycles,
        eps,
        torch.get_num_threads(),
    )
    return out


def _saved_size(z: Tensor, weights: Sequence[Tensor], num_heads: int, cycles: int) -> int:
    """How many floats the forward saves; sizes may be symbolic."""
    matrices = [weight for index, weight in enumerate(weights) if index % _EACH < 4]
    return cycles * saved_size(z, matrices, num_heads, False)


@launcher(
    "cpu_conv_cycles_forward(Tensor z, Tensor injection, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "int cycles, float eps) -> (Tensor, Tensor)",
    lambda z, injection, weights, heads, cycles, eps: (
        z.new_empty(z.shape),
        z.new_empty(_saved_size(z, weights, heads.num_heads, cycles), dtype=torch.float32),
    ),
    grouped=(3, Heads),
)
def forward(
    z: Tensor, injection: Tensor, weights: Sequence[Tensor], heads: Heads, cycles: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The same result, and the tensor that :func:`backward` needs."""
    packed, out = _pack(weights, heads.num_heads), torch.empty_like(z)
    saved = empty(_saved_size(z, weights, heads.num_heads, cycles))
    packed.module.conv_cycles_forward(
        z.detach(),
        injection.detach(),
        packed.forward,
        packed.layers,
        table(heads.cos),
        table(heads.sin),
        out,
        saved,
        *packed.sizes(),
        cycles,
        eps,
        torch.get_num_threads(),
    )
    return out, saved


@launcher(
    "cpu_conv_cycles_backward(Tensor dout, Tensor saved, Tensor[] weights, Tensor? cos, Tensor? sin, int num_heads, "
    "int cycles, float eps, bool[] wanted) -> Tensor[]",
    lambda dout, saved, weights, heads, cycles, eps, wanted: [
        dout.new_empty(dout.shape),
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
    cycles: int,
    eps: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of z, of the injection, and of the ``wanted`` weights; empty tensors for the others."""
    packed, dz, dinjection = _pack(weights, heads.num_heads), torch.empty_like(dout), torch.empty_like(dout)
    dweights = [empty(*(weight.shape if want else (0,)), dtype=weight.dtype) for weight, want in zip(weights, wanted)]
    if not dout.numel():  # the kernel writes nothing
        dweights = [gradient.zero_() for gradient in dweights]
    packed.module.conv_cycles_backward(
        dout.detach(),
        packed.forward,
        packed.backward(weights),
        packed.layers,
        table(heads.cos),
        table(heads.sin),
        saved,
        dz,
        dinjection,
        [gradient if want else None for gradient, want in zip(dweights, wanted)],
        *packed.sizes(),
        cycles,
        eps,
        torch.get_num_threads(),
    )
    return [dz, dinjection, *dweights]


def _again(ctx: Any) -> tuple[Any, tuple[Any, ...]]:
    def function(z, injection, heads, cycles, eps, *weights):  # type: ignore
        return reference.conv_cycles(z, injection, blocks_of(weights), heads, cycles, eps)

    _, z, injection, *weights = ctx.saved_tensors
    return function, (z, injection, *ctx.constants, *weights)


class _Cycles(torch.autograd.Function):
    """``apply(z, injection, heads, cycles, eps, *weights)``: all updates, one node."""

    @staticmethod
    def forward(ctx: Any, z, injection, heads, cycles, eps, *weights):  # type: ignore
        out, saved = forward(z, injection, weights, heads, cycles, eps)
        ctx.save_for_backward(saved, z, injection, *weights)  # z and injection only for second-order gradients
        ctx.constants = heads, cycles, eps
        return out

    @staticmethod
    @first_order(_again)
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        saved, _, _, *weights = ctx.saved_tensors
        wanted, dout = list(ctx.needs_input_grad[5:]), dout.resolve_neg().contiguous()
        dz, dinjection, *dweights = backward(dout, saved, weights, *ctx.constants, wanted)
        gradients = (gradient if want else None for gradient, want in zip(dweights, wanted))
        return dz, dinjection, None, None, None, *gradients


def run(z: Tensor, injection: Tensor, weights: Sequence[Tensor], heads: Heads, cycles: int, eps: float) -> Tensor:
    """``[B, S, D]``. It saves activations only if an argument needs a gradient."""
    z, injection = z.contiguous(), injection.contiguous()
    if torch.compiler.is_compiling():  # torch.compile refuses the same tensor twice
        injection = z.view_as(z) if injection is z else injection
        weights = [w.view_as(w) if any(w is v for v in weights[:i]) else w for i, w in enumerate(weights)]
    inputs = (z, injection, *weights)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        if not is_traced() and is_negated(inputs):  # as a launcher does
            z, injection, weights = each(torch.Tensor.resolve_neg, (z, injection, weights))
        return _Cycles.apply(z, injection, heads, cycles, eps, *weights)
    return infer(z, injection, weights, heads, cycles, eps)

"""The weights of a block with ConvSwiGLU: a named tuple for users, one flat list in registered ops and kernels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hrm_kernels.checks import check_block_weights, check_heads, check_like, check_shape, check_tables


class ConvBlockWeights(NamedTuple):
    """The weights of one block of attention and ConvSwiGLU; matrices are ``[out, in]`` as in ``nn.Linear``.

    Attributes:
        qkv: ``[3 H d, D]``, rows ``[q heads | k heads | v heads]``.
        o: ``[D, H d]``.
        gate_up: ``[2 I, D]``, the gate first.
        down: ``[D, I]``.
        conv: ``[I, 2]``: of the position before, then of the position itself.
        conv_bias: ``[I]``.
    """

    qkv: torch.Tensor
    o: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    conv: torch.Tensor
    conv_bias: torch.Tensor


def blocks_of(layers: Sequence[Any]) -> list[ConvBlockWeights]:
    """The blocks of a list of blocks, or of a flat list, six to a block."""
    if layers and isinstance(layers[0], torch.Tensor):
        return [ConvBlockWeights(*layers[first : first + 6]) for first in range(0, len(layers), 6)]
    return list(layers)


def check_conv_layers(op: str, layers: Any, z: torch.Tensor, num_heads: Any, cos: Any, sin: Any) -> None:
    """``layers`` is a sequence of block weights that fits ``z [B, S, D]``, the heads and the RoPE tables."""
    if not isinstance(layers, list | tuple) or not layers or isinstance(layers, ConvBlockWeights):
        raise TypeError(f"{op}: layers is {type(layers).__name__}, expected a list of ConvBlockWeights, one at least")
    for index, weights in enumerate(layers):
        name = f"layers[{index}]"
        if not isinstance(weights, tuple) or len(weights) != 6:
            raise TypeError(
                f"{op}: {name} is {type(weights).__name__}, expected "
                "ConvBlockWeights(qkv, o, gate_up, down, conv, conv_bias)"
            )
        check_block_weights(op, name, weights[:4], "z", z)
        inner = weights[3].shape[1]
        for part, weight, shape, meaning in (
            ("conv", weights[4], (inner, 2), "[I, 2] with I from down's [D, I]"),
            ("conv_bias", weights[5], (inner,), "[I] with I from down's [D, I]"),
        ):
            check_like(op, f"{name}.{part}", weight, "z", z)
            check_shape(op, f"{name}.{part}", weight, shape, meaning)
        rows = weights[0].shape[0]
        check_heads(op, f"{name}.qkv", rows, num_heads, 3)
        check_tables(op, cos, sin, z.shape[1], rows // (3 * num_heads), z.device)

"""The matrices of blocks: as a named tuple for users, as one flat list in registered ops and kernels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class BlockWeights(NamedTuple):
    """The matrices of one block, ``[out, in]`` as in ``nn.Linear``.

    Attributes:
        qkv: ``[3 H d, D]``, rows ``[q heads | k heads | v heads]``.
        o: ``[D, H d]``.
        gate_up: ``[2 I, D]``, the gate first.
        down: ``[D, I]``.
    """

    qkv: torch.Tensor
    o: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class MixingBlockWeights(NamedTuple):
    """The matrices of one block that mixes positions (TRM's ``mlp_t``) in place of attention, ``[out, in]``.

    Attributes:
        mix_gate_up: ``[2 T, S]``, the gate first; it fits one sequence length S only.
        mix_down: ``[S, T]``.
        gate_up: ``[2 I, D]``, the gate first.
        down: ``[D, I]``.
    """

    mix_gate_up: torch.Tensor
    mix_down: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


Layer = BlockWeights | MixingBlockWeights
"""The matrices of a block of either kind; all blocks of a call are of one kind."""


def flat(layers: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """All matrices in one list, four to a block."""
    return [weight for block in layers for weight in block]


def by_block(weights: Sequence[torch.Tensor], num_heads: int) -> list[Layer]:
    """The blocks of a flat list; they mix positions where num_heads is 0."""
    kind = BlockWeights if num_heads else MixingBlockWeights
    return [kind(*weights[first : first + 4]) for first in range(0, len(weights), 4)]


def layers_of(layers: Sequence[Layer] | Sequence[torch.Tensor], num_heads: int) -> Sequence[Layer]:
    """The blocks of a list of blocks, or of a flat list (the form of the registered ops)."""
    return by_block(layers, num_heads) if layers and isinstance(layers[0], torch.Tensor) else layers  # type: ignore[arg-type, return-value]

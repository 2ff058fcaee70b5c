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


def flat(layers: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """All matrices in one list, four to a block."""
    return [weight for block in layers for weight in block]


def by_block(weights: Sequence[torch.Tensor]) -> list[BlockWeights]:
    """The blocks of a flat list."""
    return [BlockWeights(*weights[first : first + 4]) for first in range(0, len(weights), 4)]


def layers_of(layers: Sequence[BlockWeights] | Sequence[torch.Tensor]) -> Sequence[BlockWeights]:
    """The blocks of a list of blocks, or of a flat list (the form of the registered ops)."""
    return by_block(layers) if layers and isinstance(layers[0], torch.Tensor) else layers  # type: ignore[arg-type, return-value]

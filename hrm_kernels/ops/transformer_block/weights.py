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


class PreNormBlockWeights(NamedTuple):
    """The weights of one pre-norm block with residual scales; matrices are ``[out, in]`` as in ``nn.Linear``.

    ``x = keep * x + add * o(attention(qkv(rms_norm(x))))``, then ``x = keep * x + add * down(swiglu(gate_up(
    rms_norm(x))))``. A module starts from ``start * z + inject * injection``, by the scales of its first block.

    Attributes:
        qkv, o, gate_up, down: as in :class:`BlockWeights`.
        scales: ``[4, D]``: keep, add, start and inject (:func:`hrm_kernels.nn.residual_scales`).

    Source: FPRM (arXiv 2606.18206), and its published code.
    """

    qkv: torch.Tensor
    o: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    scales: torch.Tensor


Layer = BlockWeights | MixingBlockWeights | PreNormBlockWeights
"""The weights of a block of any kind; all blocks of a call are of one kind."""


def flat(layers: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """All weights in one list, four to a block, five to a pre-norm block."""
    return [weight for block in layers for weight in block]


def by_block(weights: Sequence[torch.Tensor], num_heads: int) -> list[Layer]:
    """The blocks of a flat list; they mix positions where num_heads is 0."""
    if is_pre_norm(weights):
        return [PreNormBlockWeights(*weights[first : first + 5]) for first in range(0, len(weights), 5)]
    kind = BlockWeights if num_heads else MixingBlockWeights
    return [kind(*weights[first : first + 4]) for first in range(0, len(weights), 4)]


def is_pre_norm(weights: Sequence[torch.Tensor]) -> bool:
    """Whether a flat list is of pre-norm blocks: only their fifth tensor has four rows (of others it is a qkv)."""
    return len(weights) >= 5 and weights[4].shape[0] == 4


def layers_of(layers: Sequence[Layer] | Sequence[torch.Tensor], num_heads: int) -> Sequence[Layer]:
    """The blocks of a list of blocks, or of a flat list (the form of the registered ops)."""
    return by_block(layers, num_heads) if layers and isinstance(layers[0], torch.Tensor) else layers  # type: ignore[arg-type, return-value]

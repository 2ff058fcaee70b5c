"""Drop-in layers on the ops of this package, with the parameter names of the published code.

Parameters are float32 and are used in the dtype of the activations. Each call converts them
(:func:`hrm_kernels.casts.cast`), except inside :func:`hrm_kernels.frozen_weights` or after ``keep_copies`` of an
optimiser.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hrm_kernels.casts import cast
from hrm_kernels.checks import check_count
from hrm_kernels.noise import STD_OF_TRUNCATED_NORMAL
from hrm_kernels.ops.add_rms_norm import add_rms_norm
from hrm_kernels.ops.conv_cycles import ConvBlockWeights
from hrm_kernels.ops.conv_swiglu import conv_swiglu
from hrm_kernels.ops.linear import linear
from hrm_kernels.ops.reasoning_module import reasoning_module
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.swiglu import swiglu
from hrm_kernels.ops.transformer_block import (
    BlockWeights,
    MixingBlockWeights,
    PreNormBlockWeights,
    transformer_block,
)
from hrm_kernels.residual_scales import ResidualScales, residual_scales
from hrm_kernels.rope2d import head_order, reordered, rope_tables_2d

__all__ = [
    "ConvSwiGLU",
    "Embedding",
    "Linear",
    "MixingBlock",
    "MixingModule",
    "PostNormBlock",
    "ReasoningModule",
    "RoPEAttention",
    "SparseEmbedding",
    "SwiGLU",
    "URMBlock",
    "residual_scales",
    "rope_tables",
    "rope_tables_2d",
    "swiglu_inner_size",
    "truncated_normal_",
]


def truncated_normal_(tensor: torch.Tensor, std: float) -> torch.Tensor:
    """Fill ``tensor`` from a normal distribution cut at ±2 deviations and scaled so that its deviation is ``std``."""
    if std == 0:
        return nn.init.zeros_(tensor)
    wide = std / STD_OF_TRUNCATED_NORMAL
    return nn.init.trunc_normal_(tensor, std=wide, a=-2 * wide, b=2 * wide)


def swiglu_inner_size(hidden_size: int, expansion: float) -> int:
    """Inner size I of a SwiGLU: two thirds of ``expansion * hidden_size``, rounded up to a multiple of 256."""
    return math.ceil(round(expansion * hidden_size * 2 / 3) / 256) * 256


def rope_tables(
    positions: int, head_dim: int, theta: float = 10000.0, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(cos, sin)``, each ``[positions, head_dim]`` float32, for :func:`hrm_kernels.rope_attention`."""
    frequencies = 1 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=device), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


class Linear(nn.Linear):
    """:func:`hrm_kernels.linear` with the parameters of ``nn.Linear``, float32, cast to the dtype of the input."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias, dtype=torch.float32)

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, 1 / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else cast(self.bias, input.dtype)
        return linear(input, cast(self.weight, input.dtype), bias)


class Embedding(nn.Module):
    """A table ``embedding_weight [num_embeddings, embedding_dim]``; its rows are returned in ``dtype``."""

    def __init__(self, num_embeddings: int, embedding_dim: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        table = torch.empty(num_embeddings, embedding_dim, dtype=torch.float32)
        self.embedding_weight = nn.Parameter(truncated_normal_(table, std))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, cast(self.embedding_weight, self.dtype))


class LookUp(NamedTuple):
    """A look-up of a :class:`SparseEmbedding` in training.

    Attributes:
        ids: ``[B]`` identifiers.
        rows: ``[B, embedding_dim]`` float32, a leaf that collects the gradient.
        route: how the rows came from other processes, if the table is sharded.
    """

    ids: torch.Tensor
    rows: torch.Tensor
    route: Any = None


class SparseEmbedding(nn.Module):
    """A table of which a training step reads and writes only the rows that it looks up.

    ``weights [num_embeddings, embedding_dim]`` is a float32 buffer that starts at 0. In training every look-up is kept
    until the optimiser has used it: :class:`hrm_kernels.optim.SparseSignSGD` applies the gradients to the table.

    Attributes:
        look_ups: the look-ups since the optimiser's last step or ``zero_grad``.
    """

    weights: torch.Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_embeddings, embedding_dim, dtype=torch.float32))
        self.forget()

    @property
    def local_ids(self) -> torch.Tensor | None:
        """The identifiers of the last look-up in training, ``[B]``."""
        return self.look_ups[-1].ids if self.look_ups else None

    @property
    def local_weights(self) -> torch.Tensor | None:
        """The rows of the last look-up in training, ``[B, embedding_dim]`` float32, with their gradient."""
        return self.look_ups[-1].rows if self.look_ups else None

    def forget(self) -> None:
        """Drop the look-ups and their gradients."""
        self.look_ups: list[LookUp] = []
        self.used = False

    def keep(self, look_up: LookUp) -> torch.Tensor:
        """Keep a look-up for the optimiser's next step; returns its rows."""
        if self.used:
            self.forget()
        self.look_ups.append(look_up)
        return look_up.rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``[B]`` identifiers -> ``[B, embedding_dim]`` float32."""
        rows = F.embedding(ids, self.weights)
        if not (self.training and torch.is_grad_enabled()):
            return rows
        return self.keep(LookUp(ids, rows.detach().requires_grad_()))


class RoPEAttention(nn.Module):
    """Full self-attention with rotary positions: ``qkv_proj``, :func:`hrm_kernels.rope_attention`, ``o_proj``.

    ``forward(x [B, S, D], cos, sin) -> [B, S, D]``; tables from :func:`rope_tables`, or with ``rope2d`` from
    :func:`rope_tables_2d`, or None for both.
    """

    order: torch.Tensor | None

    def __init__(self, hidden_size: int, num_heads: int, rope2d: bool = False) -> None:
        super().__init__()
        check_count("RoPEAttention", "hidden_size", hidden_size)
        check_count("RoPEAttention", "num_heads", num_heads)
        if hidden_size % num_heads:
            raise ValueError(f"RoPEAttention: hidden_size is {hidden_size}, not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)
        order = head_order(num_heads, hidden_size // num_heads) if rope2d else None
        self.register_buffer("order", order, persistent=False)

    def qkv_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """``[3 H d, D]`` as :func:`hrm_kernels.rope_attention` needs it, in ``dtype``, differentiable."""
        weight = self.qkv_proj.weight
        return cast(weight, dtype) if self.order is None else reordered(weight, dtype, self.order)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None
    ) -> torch.Tensor:
        qkv = linear(x, self.qkv_weight(x.dtype))
        return self.o_proj(rope_attention(qkv, cos, sin, self.num_heads))


class SwiGLU(nn.Module):
    """``down_proj(silu(gate) * up)`` with ``[gate | up] = gate_up_proj(x)``.

    The inner size is :func:`swiglu_inner_size`. ``forward(x [..., D]) -> [..., D]``.
    """

    def __init__(self, hidden_size: int, expansion: float = 4.0) -> None:
        super().__init__()
        inner = _inner_size("SwiGLU", hidden_size, expansion)
        self.gate_up_proj = Linear(hidden_size, 2 * inner)
        self.down_proj = Linear(inner, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x)))


def _inner_size(layer: str, hidden_size: int, expansion: float) -> int:
    """The inner size of ``layer``, checked to be above 0."""
    check_count(layer, "hidden_size", hidden_size)
    inner = swiglu_inner_size(hidden_size, expansion)
    if inner < 1:
        raise ValueError(
            f"{layer}: expansion is {expansion!r}, expected more, for an inner size above 0 (published: 4.0)"
        )
    return inner


class ConvSwiGLU(nn.Module):
    """URM's MLP: ``down_proj`` of :func:`hrm_kernels.conv_swiglu` of ``gate_up_proj(x)``, whose convolution is dwconv.

    The inner size I is :func:`swiglu_inner_size`. ``dwconv.weight`` is ``[I, 1, 2]`` and ``dwconv.bias`` ``[I]``, with
    the initial values of ``nn.Conv1d``. They are float32, as all parameters; the published code keeps them in bfloat16.
    ``forward(x [..., S, D]) -> [..., S, D]``.
    """

    def __init__(self, hidden_size: int, expansion: float = 4.0) -> None:
        super().__init__()
        inner = _inner_size("ConvSwiGLU", hidden_size, expansion)
        self.gate_up_proj = Linear(hidden_size, 2 * inner)
        self.dwconv = nn.Conv1d(inner, inner, 2, padding=1, groups=inner, dtype=torch.float32)
        self.down_proj = Linear(inner, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self.gate_up_proj(x)
        return self.down_proj(conv_swiglu(gate_up, *self.convolution(gate_up.dtype)))

    def convolution(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The convolution's weight ``[I, 2]`` and bias ``[I]`` in ``dtype``, differentiable."""
        assert self.dwconv.bias is not None
        return cast(self.dwconv.weight, dtype).squeeze(1), cast(self.dwconv.bias, dtype)


class PostNormBlock(nn.Module):
    """Attention and SwiGLU, each followed by ``add_rms_norm`` with its input: one block of an HRM module.

    ``forward(x [B, S, D], cos, sin) -> [B, S, D]`` is :func:`hrm_kernels.transformer_block`; ``rope2d`` as for
    :class:`RoPEAttention`.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, expansion: float = 4.0, eps: float = 1e-5, rope2d: bool = False
    ) -> None:
        super().__init__()
        self.eps = eps
        self.self_attn = RoPEAttention(hidden_size, num_heads, rope2d)
        self.mlp = SwiGLU(hidden_size, expansion)

    def weights(self, dtype: torch.dtype) -> BlockWeights:
        """The block's matrices in ``dtype``, differentiable."""
        attention, mlp = self.self_attn, self.mlp
        linears = (attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        return BlockWeights(attention.qkv_weight(dtype), *(cast(linear.weight, dtype) for linear in linears))

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None
    ) -> torch.Tensor:
        return transformer_block(x, self.weights(x.dtype), cos, sin, self.self_attn.num_heads, self.eps)


class URMBlock(nn.Module):
    """Attention and :class:`ConvSwiGLU`, each followed by ``add_rms_norm`` with its input: one block of a URM.

    ``forward(x [B, S, D], cos, sin) -> [B, S, D]``; tables from :func:`rope_tables`, or None for both. Updates are
    faster as one call of :func:`hrm_kernels.conv_cycles`, on the :meth:`weights` of all blocks.
    """

    def __init__(self, hidden_size: int, num_heads: int, expansion: float = 4.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.self_attn = RoPEAttention(hidden_size, num_heads)
        self.mlp = ConvSwiGLU(hidden_size, expansion)

    def weights(self, dtype: torch.dtype) -> ConvBlockWeights:
        """The block's weights in ``dtype``, differentiable, for :func:`hrm_kernels.conv_cycles`."""
        attention, mlp = self.self_attn, self.mlp
        linears = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        return ConvBlockWeights._make((*(cast(linear.weight, dtype) for linear in linears), *mlp.convolution(dtype)))

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = add_rms_norm(x, self.self_attn(x, cos, sin), self.eps)
        return add_rms_norm(x, self.mlp(x), self.eps)


class ReasoningModule(nn.Module):
    """A recurrent module (H-level or L-level): add the injection, then run the blocks in turn.

    ``forward(z [B, S, D], injection [B, S, D], cos, sin) -> [B, S, D]`` is :func:`hrm_kernels.reasoning_module`;
    ``rope2d`` as for :class:`RoPEAttention`. With ``scales`` its blocks are pre-norm blocks with learned residual
    scales (:class:`hrm_kernels.PreNormBlockWeights`).
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        expansion: float = 4.0,
        eps: float = 1e-5,
        rope2d: bool = False,
        scales: tuple[float, float] | None = None,
    ) -> None:
        """
        Args:
            scales: alpha_1 and alpha_2 at first, between 0 and 1; None for post-norm blocks.
        """
        super().__init__()
        self.num_heads, self.eps = num_heads, eps
        self.scales = None if scales is None else ResidualScales(hidden_size, num_layers, *scales)
        self.layers = nn.ModuleList(
            PostNormBlock(hidden_size, num_heads, expansion, eps, rope2d) for _ in range(num_layers)
        )

    def weights(self, dtype: torch.dtype) -> list[BlockWeights] | list[PreNormBlockWeights]:
        """The weights of all blocks in ``dtype``, differentiable."""
        blocks = [layer.weights(dtype) for layer in self.layers]  # type: ignore[operator]
        if self.scales is None:
            return blocks
        scales = self.scales(dtype)
        return [PreNormBlockWeights._make((*block, scales)) for block in blocks]

    def forward(
        self,
        z: torch.Tensor,
        injection: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return reasoning_module(z, injection, self.weights(z.dtype), cos, sin, self.num_heads, self.eps)


class MixingBlock(nn.Module):
    """A block that mixes positions by a SwiGLU (``mlp_t``) instead of attention.

    ``forward(x [B, positions, D]) -> [B, positions, D]`` is :func:`hrm_kernels.transformer_block`.
    """

    def __init__(self, positions: int, hidden_size: int, expansion: float = 4.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.mlp_t = SwiGLU(positions, expansion)
        self.mlp = SwiGLU(hidden_size, expansion)

    def weights(self, dtype: torch.dtype) -> MixingBlockWeights:
        """The block's matrices in ``dtype``, differentiable."""
        linears = (self.mlp_t.gate_up_proj, self.mlp_t.down_proj, self.mlp.gate_up_proj, self.mlp.down_proj)
        return MixingBlockWeights(*(cast(linear.weight, dtype) for linear in linears))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return transformer_block(x, self.weights(x.dtype), None, None, 0, self.eps)


class MixingModule(nn.Module):
    """A recurrent module of :class:`MixingBlock` blocks: add the injection, then run the blocks in turn.

    ``forward(z [B, positions, D], injection [B, positions, D]) -> [B, positions, D]`` is
    :func:`hrm_kernels.reasoning_module`.

    Attributes:
        num_heads: 0, as for the ops.
    """

    num_heads = 0

    def __init__(
        self, num_layers: int, positions: int, hidden_size: int, expansion: float = 4.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.eps = eps
        self.layers = nn.ModuleList(MixingBlock(positions, hidden_size, expansion, eps) for _ in range(num_layers))

    def weights(self, dtype: torch.dtype) -> list[MixingBlockWeights]:
        """The matrices of all blocks in ``dtype``, differentiable."""
        return [layer.weights(dtype) for layer in self.layers]  # type: ignore[operator, misc]

    def forward(self, z: torch.Tensor, injection: torch.Tensor) -> torch.Tensor:
        return reasoning_module(z, injection, self.weights(z.dtype), None, None, self.num_heads, self.eps)

"""Drop-in layers on the ops of this package, with the parameter names of the published code.

Parameters are float32 and are cast to the dtype of the activations where they are used.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from hrm_kernels.ops.reasoning_module import reasoning_module
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.ops.swiglu import swiglu
from hrm_kernels.ops.transformer_block import BlockWeights, transformer_block

__all__ = [
    "Embedding",
    "Linear",
    "PostNormBlock",
    "ReasoningModule",
    "RoPEAttention",
    "SparseEmbedding",
    "SwiGLU",
    "rope_tables",
    "swiglu_inner_size",
    "truncated_normal_",
]

_STD_OF_TRUNCATED_NORMAL = 0.87962566103423978  # of a standard normal cut at ±2; JAX divides by it too


def truncated_normal_(tensor: torch.Tensor, std: float) -> torch.Tensor:
    """Fill ``tensor`` from a normal distribution cut at two standard deviations, so that ``std`` is what comes out."""
    if std == 0:
        return nn.init.zeros_(tensor)
    wide = std / _STD_OF_TRUNCATED_NORMAL
    return nn.init.trunc_normal_(tensor, std=wide, a=-2 * wide, b=2 * wide)


def swiglu_inner_size(hidden_size: int, expansion: float) -> int:
    """Inner size I of a SwiGLU: two thirds of ``expansion * hidden_size``, up to the next multiple of 256."""
    return math.ceil(round(expansion * hidden_size * 2 / 3) / 256) * 256


def rope_tables(
    positions: int, head_dim: int, theta: float = 10000.0, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(cos, sin)``, each ``[positions, head_dim]`` float32, for :func:`hrm_kernels.rope_attention`."""
    frequencies = 1 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=device), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


class Linear(nn.Linear):
    """``nn.Linear`` whose float32 parameters are cast to the dtype of the input."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, 1 / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


class Embedding(nn.Module):
    """Table ``embedding_weight [num_embeddings, embedding_dim]``; looked up in ``dtype``."""

    def __init__(self, num_embeddings: int, embedding_dim: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding_weight = nn.Parameter(truncated_normal_(torch.empty(num_embeddings, embedding_dim), std))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.embedding_weight.to(self.dtype))


class SparseEmbedding(nn.Module):
    """A table of which a training step touches only the rows it looks up.

    ``weights [num_embeddings, embedding_dim]`` is a buffer, float32, starting at 0. In training a look-up leaves the
    identifiers in ``local_ids [B]`` and the rows in ``local_weights [B, embedding_dim]``, a leaf that collects the
    gradient; :class:`hrm_kernels.optim.SparseSignSGD` brings it back to the table.
    """

    weights: torch.Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_embeddings, embedding_dim))
        self.local_ids: torch.Tensor | None = None
        self.local_weights: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``[B]`` identifiers -> ``[B, embedding_dim]`` float32."""
        rows = F.embedding(ids, self.weights)
        if not (self.training and torch.is_grad_enabled()):
            return rows
        self.local_ids, self.local_weights = ids, rows.detach().requires_grad_()
        return self.local_weights


class RoPEAttention(nn.Module):
    """Full self-attention with rotary positions: ``qkv_proj``, :func:`hrm_kernels.rope_attention`, ``o_proj``.

    ``forward(x [B, S, D], cos, sin) -> [B, S, D]``; tables from :func:`rope_tables`, or None for both.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"RoPEAttention: hidden_size is {hidden_size}, not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.o_proj(rope_attention(self.qkv_proj(x), cos, sin, self.num_heads))


class SwiGLU(nn.Module):
    """``down_proj(silu(gate) * up)`` with ``[gate | up] = gate_up_proj(x)``.

    The inner size is :func:`swiglu_inner_size`. ``forward(x [..., D]) -> [..., D]``.
    """

    def __init__(self, hidden_size: int, expansion: float = 4.0) -> None:
        super().__init__()
        inner = swiglu_inner_size(hidden_size, expansion)
        self.gate_up_proj = Linear(hidden_size, 2 * inner)
        self.down_proj = Linear(inner, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x)))


class PostNormBlock(nn.Module):
    """Attention and SwiGLU, each followed by ``add_rms_norm`` with its input: one block of an HRM module.

    ``forward(x [B, S, D], cos, sin) -> [B, S, D]`` is :func:`hrm_kernels.transformer_block`.
    """

    def __init__(self, hidden_size: int, num_heads: int, expansion: float = 4.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.self_attn = RoPEAttention(hidden_size, num_heads)
        self.mlp = SwiGLU(hidden_size, expansion)

    def weights(self, dtype: torch.dtype) -> BlockWeights:
        """The block's matrices in ``dtype``, differentiable."""
        attention, mlp = self.self_attn, self.mlp
        linears = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        return BlockWeights(*(linear.weight.to(dtype) for linear in linears))

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None
    ) -> torch.Tensor:
        return transformer_block(x, self.weights(x.dtype), cos, sin, self.self_attn.num_heads, self.eps)


class ReasoningModule(nn.Module):
    """A recurrent module (H-level or L-level): injection added, then its blocks in turn.

    ``forward(z [B, S, D], injection [B, S, D], cos, sin) -> [B, S, D]`` is :func:`hrm_kernels.reasoning_module`.
    """

    def __init__(
        self, num_layers: int, hidden_size: int, num_heads: int, expansion: float = 4.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_heads, self.eps = num_heads, eps
        self.layers = nn.ModuleList(PostNormBlock(hidden_size, num_heads, expansion, eps) for _ in range(num_layers))

    def weights(self, dtype: torch.dtype) -> list[BlockWeights]:
        """The matrices of all blocks in ``dtype``, differentiable."""
        return [layer.weights(dtype) for layer in self.layers]  # type: ignore[operator, misc]

    def forward(
        self,
        z: torch.Tensor,
        injection: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return reasoning_module(z, injection, self.weights(z.dtype), cos, sin, self.num_heads, self.eps)

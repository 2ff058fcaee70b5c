"""The levels of the published models as modules, with the structure and the names of the published code.

This is what ``hrm_kernels.patch`` meets in practice. The modules take their weights from a level of
:mod:`hrm_kernels.nn`, and compute what :func:`bench.published.module` computes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.published import rms_norm, rotate
from hrm_kernels.nn import MixingBlock as OurMixingBlock

Tables = tuple[torch.Tensor, torch.Tensor] | None


class Linear(nn.Module):
    """A projection that converts its float32 weight in every call."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class SwiGLU(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = Linear(layer.gate_up_proj), Linear(layer.down_proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Attention(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.num_heads = layer.num_heads
        self.qkv_proj, self.o_proj = Linear(layer.qkv_proj), Linear(layer.o_proj)

    def forward(self, cos_sin: Tables, hidden_states: torch.Tensor) -> torch.Tensor:
        B, S, D = hidden_states.shape
        heads = self.num_heads
        q, k, v = self.qkv_proj(hidden_states).view(B, S, 3 * heads, D // heads).chunk(3, 2)
        if cos_sin is not None:
            cos, sin = cos_sin
            q, k = rotate(q, cos[:S], sin[:S]), rotate(k, cos[:S], sin[:S])
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.o_proj(attended.transpose(1, 2).reshape(B, S, D))


class Block(nn.Module):
    """A transformer block; ``hidden_states`` is ``[B, S, D]``."""

    def __init__(self, layer: Any, eps: float) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm_eps = Attention(layer.self_attn), SwiGLU(layer.mlp), eps

    def forward(self, cos_sin: Tables, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.self_attn(cos_sin=cos_sin, hidden_states=hidden_states)
        hidden_states = rms_norm(hidden_states + attended, self.norm_eps)
        return rms_norm(hidden_states + self.mlp(hidden_states), self.norm_eps)


class MixingBlock(nn.Module):
    """A block of TRM with ``mlp_t``: a SwiGLU over the positions in place of attention."""

    def __init__(self, layer: Any, eps: float) -> None:
        super().__init__()
        self.mlp_t, self.mlp, self.norm_eps = SwiGLU(layer.mlp_t), SwiGLU(layer.mlp), eps

    def forward(self, cos_sin: Tables, hidden_states: torch.Tensor) -> torch.Tensor:
        across = hidden_states.transpose(1, 2)
        hidden_states = rms_norm(across + self.mlp_t(across), self.norm_eps).transpose(1, 2)
        return rms_norm(hidden_states + self.mlp(hidden_states), self.norm_eps)


class Level(nn.Module):
    """A level of the model, with the weights of ``level``, a ReasoningModule or MixingModule of ours."""

    def __init__(self, level: Any, eps: float) -> None:
        super().__init__()
        blocks = (MixingBlock if isinstance(one, OurMixingBlock) else Block for one in level.layers)
        self.layers = nn.ModuleList(make(one, eps) for make, one in zip(blocks, level.layers))

    def forward(self, hidden_states: torch.Tensor, input_injection: torch.Tensor, cos_sin: Tables) -> torch.Tensor:
        hidden_states = hidden_states + input_injection
        for layer in self.layers:
            hidden_states = layer(cos_sin=cos_sin, hidden_states=hidden_states)
        return hidden_states


def update(
    level: Level,
    z: torch.Tensor,
    injection: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """An update of a level, for :func:`bench.published.forward`."""
    return level(z, injection, cos_sin=None if cos is None or sin is None else (cos, sin))

"""Models with the structure of the published ones, written for these tests in plain PyTorch."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def norm(x, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class CastedLinear(nn.Module):
    def __init__(self, fan_in, fan_out, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None

    def forward(self, input):
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


def rotate(x, cos, sin, interleaved=False):
    if interleaved:
        rotated = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    else:
        rotated = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)
    return (x * cos[:, None] + rotated * sin[:, None]).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, dim, heads, bias=False, linear=CastedLinear, causal=False, interleaved=False, dropout=0.0):
        super().__init__()
        self.num_heads, self.head_dim, self.causal = heads, dim // heads, causal
        self.interleaved, self.dropout = interleaved, dropout
        self.qkv_proj, self.o_proj = linear(dim, 3 * dim, bias=bias), linear(dim, dim, bias=False)

    def forward(self, cos_sin, hidden_states):
        rows, positions, _ = hidden_states.shape
        q, k, v = self.qkv_proj(hidden_states).view(rows, positions, 3, self.num_heads, self.head_dim).unbind(2)
        if cos_sin is not None:
            q, k = rotate(q, *cos_sin, self.interleaved), rotate(k, *cos_sin, self.interleaved)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=dropout)
        return self.o_proj(out.transpose(1, 2).reshape(rows, positions, -1))


class SwiGLU(nn.Module):
    def __init__(self, dim, inner, linear=CastedLinear, activation=F.silu):
        super().__init__()
        self.gate_up_proj, self.down_proj = linear(dim, 2 * inner, bias=False), linear(inner, dim, bias=False)
        self.activation = activation

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(self.activation(gate) * up)


class Block(nn.Module):
    def __init__(self, dim, heads, inner, eps=1e-5, says_eps=True, mlp=None, **options):
        super().__init__()
        self.self_attn = Attention(dim, heads, **options)
        self.mlp = SwiGLU(dim, inner, options.get("linear", CastedLinear), **(mlp or {}))
        self._eps = eps
        if says_eps:
            self.norm_eps = eps

    def forward(self, cos_sin, hidden_states):
        hidden_states = norm(hidden_states + self.self_attn(cos_sin=cos_sin, hidden_states=hidden_states), self._eps)
        return norm(hidden_states + self.mlp(hidden_states), self._eps)


class MixingBlock(nn.Module):
    def __init__(self, positions, dim, inner, eps=1e-5):
        super().__init__()
        self.mlp_t, self.mlp, self.norm_eps = SwiGLU(positions, inner), SwiGLU(dim, inner), eps

    def forward(self, cos_sin, hidden_states):
        channels = hidden_states.transpose(1, 2)
        channels = norm(channels + self.mlp_t(channels), self.norm_eps)
        hidden_states = channels.transpose(1, 2)
        return norm(hidden_states + self.mlp(hidden_states), self.norm_eps)


class Level(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states, input_injection, **kwargs):
        hidden_states = hidden_states + input_injection
        for layer in self.layers:
            hidden_states = layer(hidden_states=hidden_states, **kwargs)
        return hidden_states


class Recursive(nn.Module):
    """Two alternating levels, or one (``single``): ``forward(tokens [B, S]) -> logits``."""

    def __init__(self, dim=32, heads=2, inner=48, positions=7, mixing=False, single=False, **options):
        super().__init__()
        self.dim, self.heads, self.mixing, self.single = dim, heads, mixing, single
        self.embed = nn.Embedding(11, dim)
        self.lm_head, self.q_head = CastedLinear(dim, 11), CastedLinear(dim, 2, bias=True)

        def level():
            if mixing:
                return Level(MixingBlock(positions, dim, inner) for _ in range(2))
            return Level(Block(dim, heads, inner, **options) for _ in range(2))

        self.L_level = level()
        if not single:
            self.H_level = level()

    def tables(self, positions, device):
        width = self.dim // self.heads
        frequencies = 10000 ** (-torch.arange(0, width, 2, device=device) / width)
        angles = torch.outer(torch.arange(positions, device=device), frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()

    def forward(self, tokens, dtype=torch.float32):
        e = (math.sqrt(self.dim) * self.embed(tokens)).to(dtype)
        cos_sin = None if self.mixing else self.tables(tokens.shape[1], tokens.device)
        H_level = self.L_level if self.single else self.H_level
        z_H, z_L = torch.ones_like(e), -torch.ones_like(e)
        with torch.no_grad():
            z_L = self.L_level(z_L, z_H + e, cos_sin=cos_sin)
            z_H = H_level(z_H, z_L, cos_sin=cos_sin)
        z_L = self.L_level(z_L, z_H + e, cos_sin=cos_sin)
        z_H = H_level(z_H, z_L, cos_sin=cos_sin)
        return self.lm_head(z_H), self.q_head(z_H[:, 0])

"""Run another project's recursive model on the ops of hrm_kernels: one added line, the same results.

The model is plain PyTorch, with the structure and names of the published code. Run it: python examples/patch_a_model.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import hrm_kernels
from hrm_kernels.nn import rope_tables


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj, self.o_proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, cos_sin: tuple[torch.Tensor, torch.Tensor], hidden_states: torch.Tensor) -> torch.Tensor:
        rows, positions, dim = hidden_states.shape
        q, k, v = self.qkv_proj(hidden_states).view(rows, positions, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        cos, sin = cos_sin
        q, k = (x * cos + torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) * sin for x in (q, k))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, positions, dim))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm_eps = Attention(dim, num_heads), SwiGLU(dim, inner), 1e-5

    def forward(self, cos_sin: tuple[torch.Tensor, torch.Tensor], hidden_states: torch.Tensor) -> torch.Tensor:
        x = rms_norm(hidden_states + self.self_attn(cos_sin, hidden_states), self.norm_eps)
        return rms_norm(x + self.mlp(x), self.norm_eps)


class Level(nn.Module):
    def __init__(self, *layers: Block) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: torch.Tensor, input_injection: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + input_injection
        for layer in self.layers:
            hidden_states = layer(hidden_states=hidden_states, **kwargs)
        return hidden_states


class Recursive(nn.Module):
    def __init__(self, dim: int = 64, num_heads: int = 2, inner: int = 128) -> None:
        super().__init__()
        self.level = Level(Block(dim, num_heads, inner), Block(dim, num_heads, inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cos_sin = rope_tables(x.shape[1], 32)
        z = torch.zeros_like(x)
        for _ in range(4):
            z = self.level(z, x, cos_sin=cos_sin)
        return z


if __name__ == "__main__":
    torch.manual_seed(0)
    model, x = Recursive(), torch.randn(8, 81, 64)

    def results() -> list[torch.Tensor]:
        out = model(x)
        return [out.detach(), *torch.autograd.grad(out.square().mean() + out.sum(), model.parameters())]

    before = results()
    print(hrm_kernels.patch(model))
    after = results()
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(after, before))
    print(f"largest relative difference of output and gradients: {error:.1e}")
    assert error < 1e-5
    print(f"restored modules: {hrm_kernels.unpatch(model)}")

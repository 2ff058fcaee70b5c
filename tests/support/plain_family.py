"""EqR and URM in plain PyTorch, from a state dict, in any dtype: the published arithmetic without our layers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def rms_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def swiglu(state: State, name: str, x: Tensor) -> Tensor:
    gate, up = F.linear(x, state[f"{name}.gate_up_proj.weight"]).chunk(2, -1)
    return F.linear(F.silu(gate) * up, state[f"{name}.down_proj.weight"])


def conv_swiglu(state: State, name: str, x: Tensor) -> Tensor:
    gate, up = F.linear(x, state[f"{name}.gate_up_proj.weight"]).chunk(2, -1)
    y = (F.silu(gate) * up).transpose(1, 2)
    weight, bias = state[f"{name}.dwconv.weight"], state[f"{name}.dwconv.bias"]
    y = F.silu(F.conv1d(y, weight, bias, padding=1, groups=len(weight))[..., : x.shape[1]])
    return F.linear(y.transpose(1, 2), state[f"{name}.down_proj.weight"])


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (i, i + d/2) of ``x [B, S, H, d]`` by ``angles [S, d/2]``."""
    angles = angles.repeat(1, 2).unsqueeze(-2)
    wide = x.to(torch.promote_types(x.dtype, angles.dtype))
    first, second = wide.chunk(2, -1)
    return (wide * angles.cos() + torch.cat((-second, first), -1) * angles.sin()).to(x.dtype)


def angles(positions: Tensor, width: int) -> Tensor:
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    return torch.outer(positions.float(), frequencies)


def rope(x: Tensor) -> Tensor:
    return rotate(x, angles(torch.arange(x.shape[1]), x.shape[-1]))


def rope2d(x: Tensor, board: tuple[int, int], prefix: int = 0) -> Tensor:
    """Each half of a head by itself: by the row, by the column; positions before the board stay."""
    cells = torch.arange(board[0] * board[1])
    halves = [
        rotate(half, angles(place, half.shape[-1]))
        for half, place in zip(x[:, prefix:].chunk(2, -1), (cells // board[1], cells % board[1]))
    ]
    return torch.cat((x[:, :prefix], torch.cat(halves, -1)), 1)


def attention(state: State, name: str, x: Tensor, heads: int, turn) -> Tensor:
    B, S, D = x.shape
    q, k, v = F.linear(x, state[f"{name}.qkv_proj.weight"]).view(B, S, 3 * heads, D // heads).chunk(3, 2)
    q, k = turn(q), turn(k)
    out = F.scaled_dot_product_attention(*(one.transpose(1, 2) for one in (q, k, v)))
    return F.linear(out.transpose(1, 2).reshape(B, S, D), state[f"{name}.o_proj.weight"])


def eqr_segment(state: State, config: dict, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    def module(z: Tensor, injection: Tensor) -> Tensor:
        new = z + injection
        for i in range(config["L_layers"]):
            name = f"inner.L_level.layers.{i}"
            if config["mlp_t"]:
                across = new.transpose(1, 2)
                new = rms_norm(across + swiglu(state, f"{name}.mlp_t", across)).transpose(1, 2)
            else:
                board = config["board_height"], config["board_width"]
                turn = lambda one: rope2d(one, board)  # noqa: E731
                new = rms_norm(new + attention(state, f"{name}.self_attn", new, config["num_heads"], turn))
            new = rms_norm(new + swiglu(state, f"{name}.mlp", new))
        return (1 - config["lambda_"]) * z + config["lambda_"] * new

    for cycle in range(config["H_cycles"]):
        with torch.set_grad_enabled(torch.is_grad_enabled() and cycle == config["H_cycles"] - 1):
            for _ in range(config["L_cycles"]):
                z_L = module(z_L, z_H + x)
            z_H = module(z_H, z_L)
    return z_H, z_L


def urm_segment(state: State, config: dict, hidden: Tensor, x: Tensor) -> tuple[Tensor]:
    for cycle in range(config["H_cycles"]):
        with torch.set_grad_enabled(torch.is_grad_enabled() and cycle == config["H_cycles"] - 1):
            for _ in range(config["L_cycles"]):
                hidden = hidden + x
                for i in range(config["num_layers"]):
                    name = f"inner.layers.{i}"
                    attended = attention(state, f"{name}.self_attn", hidden, config["num_heads"], rope)
                    hidden = rms_norm(hidden + attended)
                    hidden = rms_norm(hidden + conv_swiglu(state, f"{name}.mlp", hidden))
    return (hidden,)


def embed(state: State, config: dict, batch: State) -> Tensor:
    table, D = state["inner.embed_tokens.embedding_weight"], config["hidden_size"]
    x = F.embedding(batch["inputs"], table)
    if "inner.puzzle_emb.weights" in state:
        rows = F.embedding(batch["puzzle_identifiers"], state["inner.puzzle_emb.weights"])
        length = -(-rows.shape[1] // D)
        x = torch.cat((F.pad(rows, (0, length * D - rows.shape[1])).view(-1, length, D), x), 1)
    return math.sqrt(D) * x


def stablemax_loss(logits: Tensor, q_halt: Tensor, labels: Tensor) -> Tensor:
    """Stablemax per row + 0.5 BCE(q_halt, row exactly right), summed over rows, in float64."""
    logits, labelled = logits.double(), labels != -100
    s = torch.where(logits < 0, 1 / (1 - logits + 1e-30), logits + 1)
    chosen = s.gather(-1, torch.where(labelled, labels, 0).unsqueeze(-1)).squeeze(-1)
    tokens = torch.where(labelled, -(chosen / s.sum(-1)).log(), 0)
    counts = labelled.sum(-1)
    right = ((logits.argmax(-1) == labels) & labelled).sum(-1) == counts
    bce = F.binary_cross_entropy_with_logits(q_halt, right.to(q_halt.dtype), reduction="sum")
    return (tokens.sum(-1) / counts.clamp(min=1)).sum() + 0.5 * bce

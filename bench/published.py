"""The published computation of HRM and TRM in plain PyTorch, op by op: ``eager`` in the tables.

Nothing here is computed by ``hrm_kernels``: weights are cast where they are used, heads are split by views, attention
is ``scaled_dot_product_attention``, and the Q target runs a whole second segment. The functions use an :class:`hrm.HRM`
or an :class:`hrm.TRM` only for its weights. With float64 parameters everything is float64.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from hrm import act
from hrm.model import HRM, Batch, Carry
from hrm.trm import TRM
from hrm_kernels.nn import MixingBlock, PostNormBlock


def in_float64(model: HRM) -> HRM:
    """A copy whose parameters and buffers are float64."""
    return copy.deepcopy(model).double()


def carry_in_float64(carry: Carry) -> Carry:
    return replace(carry, z_H=carry.z_H.double(), z_L=carry.z_L.double())


def _dtype(model: HRM) -> torch.dtype:
    """The dtype of the activations."""
    weights = model.inner.lm_head.weight.dtype
    return weights if weights is torch.float64 else model.config.dtype


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    first, second = wide.chunk(2, -1)
    return (wide * cos.unsqueeze(-2) + torch.cat((-second, first), -1) * sin.unsqueeze(-2)).to(x.dtype)


def _linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


def _swiglu(x: torch.Tensor, mlp: Any) -> torch.Tensor:
    gate, up = _linear(x, mlp.gate_up_proj).chunk(2, -1)
    return _linear(F.silu(gate) * up, mlp.down_proj)


def block(
    layer: PostNormBlock | MixingBlock, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """A block; ``x`` and the result are ``[B, S, D]``."""
    B, S, D = x.shape
    if isinstance(layer, MixingBlock):
        across = x.transpose(1, 2)
        x = rms_norm(across + _swiglu(across, layer.mlp_t), eps).transpose(1, 2)
        return rms_norm(x + _swiglu(x, layer.mlp), eps)
    heads = layer.self_attn.num_heads
    q, k, v = _linear(x, layer.self_attn.qkv_proj).view(B, S, 3 * heads, D // heads).chunk(3, 2)
    if cos is not None and sin is not None:
        q, k = rotate(q, cos[:S], sin[:S]), rotate(k, cos[:S], sin[:S])
    attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    x = rms_norm(x + _linear(attended.transpose(1, 2).reshape(B, S, D), layer.self_attn.o_proj), eps)
    return rms_norm(x + _swiglu(x, layer.mlp), eps)


def module(
    level: Any,
    z: torch.Tensor,
    injection: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """One update of a ``ReasoningModule`` or ``MixingModule`` of :mod:`hrm_kernels.nn`."""
    z = z + injection
    for layer in level.layers:
        z = block(layer, z, cos, sin, eps)
    return z


def embed(model: HRM, batch: Batch) -> torch.Tensor:
    """Input embeddings ``[B, S, D]``: the puzzle's embedding first, then its cells."""
    inner, config, dtype = model.inner, model.config, _dtype(model)
    x = F.embedding(batch["inputs"], inner.embed_tokens.embedding_weight.to(dtype))
    if config.puzzle_emb_ndim:
        puzzle = inner.puzzle_emb(batch["puzzle_identifiers"]).to(dtype)
        puzzle = F.pad(puzzle, (0, config.puzzle_emb_len * config.hidden_size - config.puzzle_emb_ndim))
        x = torch.cat((puzzle.view(-1, config.puzzle_emb_len, config.hidden_size), x), 1)
    if config.pos_encodings == "learned":
        x = 0.707106781 * (x + inner.embed_pos.embedding_weight.to(dtype))
    return math.sqrt(config.hidden_size) * x


Update = Callable[..., torch.Tensor]
"""Computes an update of a level, as :func:`module` does."""


def segment(
    model: HRM, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, update: Update = module
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One segment: ``(z_H, z_L, logits, q_halt, q_continue)``.

    Gradients flow through the last update of each module, for a TRM through the last cycle.
    """
    inner, config = model.inner, model.config
    tables = inner.cos, inner.sin, config.rms_norm_eps
    H_level = inner.L_level if isinstance(model, TRM) else inner.H_level
    L_updates_with_gradient = {"one_step": 1, "last_cycle": config.L_cycles}[str(config.gradient)]
    for H_cycle in range(config.H_cycles):
        is_last = torch.is_grad_enabled() and H_cycle == config.H_cycles - 1
        for L_cycle in range(config.L_cycles):
            with torch.set_grad_enabled(is_last and L_cycle >= config.L_cycles - L_updates_with_gradient):
                z_L = update(inner.L_level, z_L, z_H + x, *tables)
        with torch.set_grad_enabled(is_last):
            z_H = update(H_level, z_H, z_L, *tables)
    q = _linear(z_H[:, 0], inner.q_head)
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    q_halt, q_continue = q[:, 0], q[:, 1] if config.learns_to_continue else torch.zeros_like(q[:, 1])
    return z_H, z_L, _linear(z_H[:, config.puzzle_emb_len :], inner.lm_head), q_halt, q_continue


def forward(model: HRM, carry: Carry, batch: Batch, update: Update = module) -> tuple[Carry, dict[str, torch.Tensor]]:
    """One call of the model: refill, one segment, halting, and in training the Q target."""
    config, dtype, refill = model.config, _dtype(model), carry.halted
    data = {
        name: torch.where(refill.view(-1, *(1,) * (values.ndim - 1)), values, carry.current_data[name])
        for name, values in batch.items()
    }
    z_H, z_L = (
        torch.where(refill.view(-1, 1, 1), start.to(dtype), state)
        for start, state in ((model.inner.H_init, carry.z_H), (model.inner.L_init, carry.z_L))
    )
    steps = torch.where(refill, 0, carry.steps) + 1
    x = embed(model, data)
    z_H, z_L, logits, q_halt, q_continue = segment(model, z_H, z_L, x, update)
    outputs = {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue}
    with torch.no_grad():
        z_H, z_L = z_H.detach(), z_L.detach()
        halted = steps >= config.halt_max_steps
        if model.training and config.halt_max_steps > 1:
            min_steps = act.draw_min_steps(
                len(steps), config.halt_max_steps, config.halt_exploration_prob, None, x.device
            )
            halted = act.halts(steps, q_halt, q_continue, config.halt_max_steps, min_steps)
            if config.learns_to_continue:
                _, _, _, next_halt, next_continue = segment(model, z_H, z_L, x, update)
                target = act.target_q_continue(steps, next_halt, next_continue, config.halt_max_steps)
                outputs["target_q_continue"] = target
    return Carry(z_H, z_L, steps, halted, data), outputs

"""The hierarchical reasoning model (arXiv 2506.21734): two recurrent modules at two speeds, with halting."""

import math
from dataclasses import dataclass

import torch
from torch import nn

import hrm_kernels
from hrm import act
from hrm.config import HRMConfig
from hrm.errors import InputError
from hrm_kernels.nn import Embedding, Linear, ReasoningModule, SparseEmbedding, rope_tables, truncated_normal_

Batch = dict[str, torch.Tensor]
"""``inputs`` and ``labels`` ``[B, seq_len]``, ``puzzle_identifiers`` ``[B]``, integers (labels only for training)."""


@dataclass
class Carry:
    """What the rows of a batch take from one call to the next; detached.

    Attributes:
        z_H, z_L: ``[B, P + seq_len, D]`` states in the forward dtype.
        steps: ``[B]`` int32, segments so far.
        halted: ``[B]`` bool: the row is done and takes the next batch's data.
        current_data: the data each row works on.
    """

    z_H: torch.Tensor
    z_L: torch.Tensor
    steps: torch.Tensor
    halted: torch.Tensor
    current_data: Batch


class HRMInner(nn.Module):
    """The recurrent network without halting: embedding, one segment, heads."""

    H_init: torch.Tensor
    L_init: torch.Tensor
    cos: torch.Tensor | None
    sin: torch.Tensor | None

    def __init__(self, config: HRMConfig) -> None:
        super().__init__()
        self.config = config
        dim, std = config.hidden_size, 1 / math.sqrt(config.hidden_size)
        self.embed_tokens = Embedding(config.vocab_size, dim, std, config.dtype)
        self.lm_head = Linear(dim, config.vocab_size)
        self.q_head = Linear(dim, 2, bias=True)
        if config.puzzle_emb_ndim:
            self.puzzle_emb = SparseEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        cos, sin = None, None
        if config.pos_encodings == "rope":
            cos, sin = rope_tables(config.positions, config.head_dim, config.rope_theta)
        else:
            self.embed_pos = Embedding(config.positions, dim, std, config.dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        sizes = (dim, config.num_heads, config.expansion, config.rms_norm_eps)
        self.H_level = ReasoningModule(config.H_layers, *sizes)
        self.L_level = ReasoningModule(config.L_layers, *sizes)
        self.register_buffer("H_init", truncated_normal_(torch.empty(dim), 1))
        self.register_buffer("L_init", truncated_normal_(torch.empty(dim), 1))
        with torch.no_grad():  # training starts with "don't halt": q far below 0, whatever the state
            self.q_head.weight.zero_()
            self.q_head.bias.fill_(-5)

    def embed(self, batch: Batch) -> torch.Tensor:
        """The input embedding ``[B, P + seq_len, D]`` in the forward dtype."""
        config = self.config
        x = self.embed_tokens(batch["inputs"])
        if config.puzzle_emb_ndim:
            puzzle = self.puzzle_emb(batch["puzzle_identifiers"]).to(config.dtype)
            room = config.puzzle_emb_len * config.hidden_size
            puzzle = torch.nn.functional.pad(puzzle, (0, room - config.puzzle_emb_ndim))
            x = torch.cat((puzzle.view(-1, config.puzzle_emb_len, config.hidden_size), x), dim=1)
        if config.pos_encodings == "learned":
            x = math.sqrt(0.5) * (x + self.embed_pos.embedding_weight.to(config.dtype))
        return math.sqrt(config.hidden_size) * x

    def segment(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """H_cycles times (L_cycles updates of z_L, one of z_H), with gradients through the last of each only."""
        config = self.config
        H_layers, L_layers = self.H_level.weights(config.dtype), self.L_level.weights(config.dtype)
        cos, sin, heads, eps = self.cos, self.sin, config.num_heads, config.rms_norm_eps
        z_H, z_L = hrm_kernels.recurrent_cycles(
            z_H, z_L, x, H_layers, L_layers, cos, sin, heads, config.H_cycles, config.L_cycles, eps
        )
        z_L = hrm_kernels.reasoning_module(z_L, z_H + x, L_layers, cos, sin, heads, eps)
        z_H = hrm_kernels.reasoning_module(z_H, z_L, H_layers, cos, sin, heads, eps)
        return z_H, z_L

    def logits(self, z_H: torch.Tensor) -> torch.Tensor:
        """``[B, seq_len, vocab_size]`` in the forward dtype."""
        return self.lm_head(z_H[:, self.config.puzzle_emb_len :])

    def q_values(self, z_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(q_halt, q_continue)``, logits, ``[B]`` float32 both."""
        q = self.q_head(z_H[:, 0]).float()
        return q[:, 0], q[:, 1]


class HRM(nn.Module):
    """The hierarchical reasoning model with adaptive computation time.

    ``state_dict()`` has the names of the published checkpoints (without their wrappers' prefixes). Each call runs one
    segment for every row of the batch::

        carry = model.initial_carry(batch)
        while not carry.halted.all():                  # (a fresh carry has every row halted: call once before)
            carry, outputs = model(carry, batch)
    """

    def __init__(self, config: HRMConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = HRMInner(config)

    @property
    def puzzle_emb(self) -> SparseEmbedding | None:
        """The puzzle embedding, for :class:`hrm_kernels.optim.SparseSignSGD`; None without one."""
        return self.inner.puzzle_emb if self.config.puzzle_emb_ndim else None

    def initial_carry(self, batch: Batch) -> Carry:
        """A carry with every row halted, so that the first call takes all rows of its batch."""
        inputs = batch["inputs"]
        rows, device = inputs.shape[0], inputs.device
        shape = (rows, self.config.positions, self.config.hidden_size)
        return Carry(
            z_H=torch.zeros(shape, dtype=self.config.dtype, device=device),
            z_L=torch.zeros(shape, dtype=self.config.dtype, device=device),
            steps=torch.zeros(rows, dtype=torch.int32, device=device),
            halted=torch.ones(rows, dtype=torch.bool, device=device),
            current_data={name: torch.zeros_like(values) for name, values in batch.items()},
        )

    def forward(
        self, carry: Carry, batch: Batch, min_steps: torch.Tensor | None = None
    ) -> tuple[Carry, dict[str, torch.Tensor]]:
        """Refill the rows that have halted from ``batch``, run one segment, decide which rows halt.

        Args:
            carry: from :meth:`initial_carry` or the last call.
            batch: the data for rows that have halted.
            min_steps: training only: ``[B]`` int32, segments that a row runs at least (exploration); None draws them
                from torch's global generator with ``halt_exploration_prob``.

        Returns:
            The new carry, and outputs: ``logits [B, seq_len, vocab_size]`` in the forward dtype, ``q_halt_logits`` and
            ``q_continue_logits`` ``[B]`` float32, and in training with halt_max_steps > 1 ``target_q_continue [B]``.
            In evaluation rows halt after halt_max_steps segments only; decide earlier yourself by the Q values.

        Raises:
            InputError: the batch does not fit the configuration.
        """
        self._check(batch)
        config, inner, refill = self.config, self.inner, carry.halted
        data = {
            name: torch.where(refill.view(-1, *(1,) * (values.ndim - 1)), values, carry.current_data[name])
            for name, values in batch.items()
        }
        rows = refill.view(-1, 1, 1)
        z_H = torch.where(rows, inner.H_init.to(config.dtype), carry.z_H)
        z_L = torch.where(rows, inner.L_init.to(config.dtype), carry.z_L)
        steps = torch.where(refill, 0, carry.steps) + 1

        x = inner.embed(data)
        z_H, z_L = inner.segment(z_H, z_L, x)
        q_halt, q_continue = inner.q_values(z_H)
        outputs = {"logits": inner.logits(z_H), "q_halt_logits": q_halt, "q_continue_logits": q_continue}

        with torch.no_grad():
            z_H, z_L = z_H.detach(), z_L.detach()
            if not self.training:
                halted = steps >= config.halt_max_steps
            else:
                if min_steps is None:
                    min_steps = act.draw_min_steps(
                        len(steps), config.halt_max_steps, config.halt_exploration_prob, device=steps.device
                    )
                halted = act.halts(steps, q_halt, q_continue, config.halt_max_steps, min_steps)
                if config.halt_max_steps > 1:
                    next_q = inner.q_values(inner.segment(z_H, z_L, x)[0])
                    outputs["target_q_continue"] = act.target_q_continue(steps, *next_q, config.halt_max_steps)
        return Carry(z_H, z_L, steps, halted, data), outputs

    def _check(self, batch: Batch) -> None:
        for name in ("inputs", "puzzle_identifiers"):
            if name not in batch:
                raise InputError(
                    f"HRM: the batch has {', '.join(batch) or 'nothing'}, expected 'inputs' and 'puzzle_identifiers'"
                )
        inputs, identifiers = batch["inputs"], batch["puzzle_identifiers"]
        if inputs.ndim != 2 or inputs.shape[1] != self.config.seq_len:
            raise InputError(
                f"HRM: inputs has shape {list(inputs.shape)}, expected [B, seq_len] = [any, {self.config.seq_len}]; "
                "the data and the model are of different tasks"
            )
        if identifiers.shape != inputs.shape[:1]:
            raise InputError(
                f"HRM: puzzle_identifiers has shape {list(identifiers.shape)}, expected [B] = [{inputs.shape[0]}]"
            )

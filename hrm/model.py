"""The hierarchical reasoning model (arXiv 2506.21734): two recurrent modules at two speeds, with halting."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import hrm_kernels
from hrm import act
from hrm.config import HRMConfig, ModelConfig
from hrm.errors import InputError
from hrm_kernels.autodiff import without_tangents
from hrm_kernels.casts import cast, with_frozen_weights
from hrm_kernels.fixed_point import Gradient, fixed_point, gradient_steps
from hrm_kernels.nn import (
    Embedding,
    Linear,
    MixingModule,
    ReasoningModule,
    SparseEmbedding,
    rope_tables,
    truncated_normal_,
)
from hrm_kernels.ops.reasoning_module.first_position import first_position
from hrm_kernels.sharded_embedding import ShardedEmbedding

Batch = dict[str, torch.Tensor]
"""``inputs`` and ``labels`` ``[B, seq_len]``, ``puzzle_identifiers`` ``[B]``, any integers (labels: for training)."""

States = tuple[torch.Tensor, torch.Tensor]
"""``(z_H, z_L)``"""


def as_indices(owner: str, name: str, values: torch.Tensor) -> torch.Tensor:
    """``values`` in a dtype that a look-up takes: int32 and int64 as they are, other integers in one that holds them.

    Raises:
        InputError: they are no integers.
    """
    if not isinstance(values, torch.Tensor):
        raise InputError(f"{owner}: {name} is {type(values).__name__}, expected a tensor of integers (torch.as_tensor)")
    dtype = values.dtype
    if dtype in (torch.int32, torch.int64):
        return values
    if dtype is torch.bool or dtype.is_floating_point or dtype.is_complex:
        raise InputError(f"{owner}: {name} is {dtype}, expected integers of any dtype; convert it, as with .long()")
    return values.to(torch.int32 if dtype.itemsize < 4 else torch.int64)


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
    """The recurrent network without halting: embedding, one segment, heads.

    Attributes:
        gradient: of a segment's updates; starts as the configuration's and may be set from step to step, such as to
            :func:`hrm_kernels.fixed_point.warm_up`.
    """

    H_level: ReasoningModule
    L_level: ReasoningModule | MixingModule
    H_init: torch.Tensor
    L_init: torch.Tensor
    cos: torch.Tensor | None
    sin: torch.Tensor | None

    def __init__(self, config: HRMConfig, sharded: bool = False) -> None:
        super().__init__()
        self.config = config
        self.gradient: Gradient = config.gradient
        dim, std = config.hidden_size, 1 / math.sqrt(config.hidden_size)
        self.embed_tokens = Embedding(config.vocab_size, dim, std, config.dtype)
        self.lm_head = Linear(dim, config.vocab_size)
        self.q_head = Linear(dim, 2, bias=True)
        if config.puzzle_emb_ndim:
            table = ShardedEmbedding if sharded else SparseEmbedding
            self.puzzle_emb = table(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        cos, sin = None, None
        if config.pos_encodings == "rope":
            cos, sin = rope_tables(config.positions, config.head_dim, config.rope_theta)
        elif config.pos_encodings == "learned":
            self.embed_pos = Embedding(config.positions, dim, std, config.dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._make_levels(config)
        self.register_buffer("H_init", truncated_normal_(torch.empty(dim, dtype=torch.float32), 1))
        self.register_buffer("L_init", truncated_normal_(torch.empty(dim, dtype=torch.float32), 1))
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
            x = math.sqrt(0.5) * (x + cast(self.embed_pos.embedding_weight, config.dtype))
        return math.sqrt(config.hidden_size) * x

    def segment(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor) -> States:
        """H_cycles times (L_cycles updates of z_L, one of z_H); ``gradient`` says which of them carry gradients."""
        config, (H_level, L_level) = self.config, self._levels()
        H, L = self._update(H_level), self._update(L_level)

        def update_H(state: States, x: torch.Tensor) -> States:
            z_H, z_L = state
            return (self._update(H_level) if several else H)(z_H, z_L), z_L

        def update_L(state: States, x: torch.Tensor) -> States:
            z_H, z_L = state
            return z_H, (self._update(L_level) if several else L)(z_L, z_H + x)

        cycle = [update_L] * config.L_cycles + [update_H]
        steps = config.H_cycles * len(cycle)
        kept = gradient_steps(cycle, steps, self.gradient if torch.is_grad_enabled() else "one_step")
        # weights that are used several times are converted at each: the gradients of all uses are added in float32
        several = kept > 2
        whole = (steps - kept + 2) // len(cycle)  # cycles of which at most the last two updates carry gradients
        if whole and not isinstance(H_level, MixingModule) and not isinstance(L_level, MixingModule):
            z_H, z_L = self._cycles(z_H, z_L, x, H_level, L_level, whole)
            cycle = cycle[-2:] + cycle[:-2]
            steps -= whole * len(cycle) - 2
        z_H, z_L = fixed_point(cycle, (z_H, z_L), x, steps=steps, gradient=kept, recompute=config.recompute)
        return z_H, z_L

    def _make_levels(self, config: HRMConfig) -> None:
        sizes = (config.hidden_size, config.num_heads, config.expansion, config.rms_norm_eps)
        self.H_level = ReasoningModule(config.H_layers, *sizes)
        self.L_level = ReasoningModule(config.L_layers, *sizes)

    def _levels(self) -> tuple[ReasoningModule | MixingModule, ReasoningModule | MixingModule]:
        """What updates z_H, and what updates z_L."""
        return self.H_level, self.L_level

    def _update(self, level: ReasoningModule | MixingModule) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """``update(z, injection)``, with the weights converted now (which costs about as much as a small kernel)."""
        if isinstance(level, MixingModule):
            return level
        layers, config = level.weights(self.config.dtype), self.config

        def update(z: torch.Tensor, injection: torch.Tensor) -> torch.Tensor:
            return hrm_kernels.reasoning_module(
                z, injection, layers, self.cos, self.sin, config.num_heads, config.rms_norm_eps
            )

        return update

    def _cycles(
        self,
        z_H: torch.Tensor,
        z_L: torch.Tensor,
        x: torch.Tensor,
        H_level: ReasoningModule,
        L_level: ReasoningModule,
        cycles: int,
    ) -> States:
        """``cycles`` cycles but for their last update of each state, without gradients."""
        config = self.config
        with torch.no_grad():
            H_layers, L_layers = H_level.weights(config.dtype), L_level.weights(config.dtype)
            given = without_tangents((z_H, z_L, x, H_layers, L_layers))
            sizes = (config.num_heads, cycles, config.L_cycles, config.rms_norm_eps)
            return hrm_kernels.recurrent_cycles(*given, self.cos, self.sin, *sizes)

    def logits(self, z_H: torch.Tensor) -> torch.Tensor:
        """``[B, seq_len, vocab_size]`` in the forward dtype."""
        return self.lm_head(z_H[:, self.config.puzzle_emb_len :])

    def q_values(self, z_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(q_halt, q_continue)``, logits, ``[B]`` float32 both; of z_H only the first position is read."""
        q = self.q_head(z_H[:, 0]).float()
        return q[:, 0], q[:, 1]

    def next_q_values(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``q_values(segment(z_H, z_L, x)[0])``, for which the last block of attention computes no other position."""
        config, (H_level, L_level) = self.config, self._levels()
        if isinstance(H_level, MixingModule) or isinstance(L_level, MixingModule):
            return self.q_values(self.segment(z_H, z_L, x)[0])
        z_H, z_L = self._cycles(z_H, z_L, x, H_level, L_level, config.H_cycles)
        z_L = self._update(L_level)(z_L, z_H + x)
        H_layers = H_level.weights(config.dtype)
        first = first_position(z_H, z_L, H_layers, self.cos, self.sin, config.num_heads, config.rms_norm_eps)
        return self.q_values(first.unsqueeze(1))


class HRM(nn.Module):
    """The hierarchical reasoning model with adaptive computation time.

    ``state_dict()`` has the names of the published checkpoints (without their wrappers' prefixes). Each call runs one
    segment for every row of the batch::

        carry = model.initial_carry(batch)
        while not carry.halted.all():                  # (a fresh carry has every row halted: call once before)
            carry, outputs = model(carry, batch)

    With ``sharded`` the rows of the puzzle embedding are divided among the processes of ``torch.distributed``
    (:class:`hrm_kernels.sharded_embedding.ShardedEmbedding`).

    Attributes:
        identifiers: which puzzle identifiers the rows of the puzzle embedding were trained on
            (:func:`hrm.data.fingerprint.names_fingerprint`); None where that is not known.
    """

    identifiers: str | None = None
    _configured_by: ClassVar[type[ModelConfig]] = HRMConfig

    def __init__(self, config: HRMConfig, sharded: bool = False) -> None:
        """
        Raises:
            InputError: the configuration is not this family's.
        """
        super().__init__()
        if not isinstance(config, self._configured_by):
            name, expected = type(self).__name__, self._configured_by.__name__
            raise InputError(
                f"{name}: config is {type(config).__name__}, expected {expected}; an HRMConfig makes an hrm.HRM, a "
                f"TRMConfig an hrm.TRM, and {expected}.parse reads plain values"
            )
        self.config = config
        self.inner = self._make_inner(config, sharded)

    def _make_inner(self, config: HRMConfig, sharded: bool) -> HRMInner:
        return HRMInner(config, sharded)

    @property
    def puzzle_emb(self) -> SparseEmbedding | None:
        """The puzzle embedding, for :class:`hrm_kernels.optim.SparseSignSGD`; None without one."""
        return self.inner.puzzle_emb if self.config.puzzle_emb_ndim else None

    def initial_carry(self, batch: Batch) -> Carry:
        """A carry with every row halted, so that the first call takes all rows of its batch.

        Raises:
            InputError: the batch does not fit the configuration.
        """
        batch = self._check(batch)
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

    @with_frozen_weights
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
            ``q_continue_logits`` ``[B]`` float32, and in training with halt_max_steps > 1 ``target_q_continue [B]``
            (unless what going on is worth is not learned). In evaluation rows halt after halt_max_steps segments only;
            decide earlier yourself by the Q values.

        Raises:
            InputError: the batch does not fit the configuration, or the carry.
        """
        batch = self._check(batch)
        self._check_carry(carry, batch)
        config, inner, refill = self.config, self.inner, carry.halted
        data = {
            name: torch.where(refill.view(-1, *(1,) * (values.ndim - 1)), values, carry.current_data[name])
            for name, values in batch.items()
        }
        rows = refill.view(-1, 1, 1)
        z_H = torch.where(rows, inner.H_init.to(config.dtype), carry.z_H)
        z_L = torch.where(rows, inner.L_init.to(config.dtype), carry.z_L)
        steps = torch.where(refill, 0, carry.steps) + 1

        try:
            x = inner.embed(data)
        except IndexError:  # a CPU says so; looking beforehand would make the host wait for a GPU
            self._check_range(data)
            raise
        z_H, z_L = inner.segment(z_H, z_L, x)
        q_halt, q_continue = inner.q_values(z_H)
        outputs = {"logits": inner.logits(z_H), "q_halt_logits": q_halt, "q_continue_logits": q_continue}

        with torch.no_grad():
            z_H, z_L = z_H.detach().to(config.dtype), z_L.detach().to(config.dtype)  # which autocast may change
            if not self.training:
                halted = steps >= config.halt_max_steps
            else:
                if min_steps is None:
                    min_steps = act.draw_min_steps(
                        len(steps), config.halt_max_steps, config.halt_exploration_prob, device=steps.device
                    )
                halted = act.halts(steps, q_halt, q_continue, config.halt_max_steps, min_steps)
                if config.halt_max_steps > 1 and config.learns_to_continue:
                    next_q = inner.next_q_values(z_H, z_L, x)
                    outputs["target_q_continue"] = act.target_q_continue(steps, *next_q, config.halt_max_steps)
        return Carry(z_H, z_L, steps, halted, data), outputs

    def _check(self, batch: Batch) -> Batch:
        """The batch with indices in a dtype that look-ups take."""
        for name in ("inputs", "puzzle_identifiers"):
            if name not in batch:
                raise InputError(
                    f"HRM: the batch has {', '.join(batch) or 'nothing'}, expected 'inputs' and 'puzzle_identifiers'"
                )
        indices = {n: as_indices("HRM", n, batch[n]) for n in ("inputs", "labels", "puzzle_identifiers") if n in batch}
        inputs, identifiers = indices["inputs"], indices["puzzle_identifiers"]
        if inputs.ndim != 2 or inputs.shape[1] != self.config.seq_len:
            raise InputError(
                f"HRM: inputs has shape {list(inputs.shape)}, expected [B, seq_len] = [any, {self.config.seq_len}]; "
                "the data and the model are of different tasks"
            )
        if identifiers.shape != inputs.shape[:1]:
            raise InputError(
                f"HRM: puzzle_identifiers has shape {list(identifiers.shape)}, expected [B] = [{inputs.shape[0]}]"
            )
        return batch | indices

    def _check_range(self, data: Batch) -> None:
        rows = {"inputs": self.config.vocab_size, "puzzle_identifiers": self.config.num_puzzle_identifiers}
        for name, size in rows.items():
            wrong = data[name][(data[name] < 0) | (data[name] >= size)]
            if wrong.numel():
                raise InputError(
                    f"HRM: {name} holds {wrong[0].item()}, expected 0 to {size - 1}; the data and the model are of "
                    "different tasks"
                ) from None

    def _check_carry(self, carry: Carry, batch: Batch) -> None:
        if len(carry.halted) != len(batch["inputs"]):
            raise InputError(
                f"HRM: the batch has {len(batch['inputs'])} rows and the carry {len(carry.halted)}; give batches of "
                "one size, or begin anew with model.initial_carry(batch)"
            )
        for name in batch:
            if name not in carry.current_data:
                raise InputError(
                    f"HRM: the batch has {name!r} and the carry has not ({', '.join(carry.current_data)}); give it in "
                    "every batch, that of model.initial_carry too"
                )

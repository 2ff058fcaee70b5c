"""The hierarchical reasoning model (arXiv 2506.21734): two recurrent modules at two time scales, with halting.

- :meth:`HRMInner.loops`: one segment as in the paper; :mod:`hrm.fused` computes the same faster.
- :meth:`HRMInner.gradient_updates`: how many of its last updates carry gradients (the one-step gradient).
- :meth:`HRM.forward`: a segment for a batch whose rows halt and are refilled; :mod:`hrm.act` has the rule.
- :func:`hrm.losses.act_loss`: the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self

import hrm_kernels
from hrm import act, fused
from hrm.batch_checks import check_batch, check_carry, check_range
from hrm.config import HRMConfig, ModelConfig
from hrm.errors import InputError
from hrm.fused import Level, States
from hrm_kernels.autodiff import may_differentiate, without_tangents
from hrm_kernels.casts import cast, with_frozen_weights
from hrm_kernels.damping import Damping, following
from hrm_kernels.fixed_point import Gradient, gradient_steps
from hrm_kernels.nn import (
    Embedding,
    Linear,
    ReasoningModule,
    SparseEmbedding,
    truncated_normal_,
)
from hrm_kernels.ops.transformer_block import Layer
from hrm_kernels.sharded_embedding import ShardedEmbedding

Batch = dict[str, torch.Tensor]
"""``inputs`` and ``labels`` ``[B, seq_len]``, ``puzzle_identifiers`` ``[B]``, any integers (labels: for training)."""
Outputs = dict[str, torch.Tensor]
"""``logits`` ``[B, seq_len, vocab_size]``, ``q_halt_logits`` and ``q_continue_logits`` ``[B]``; see HRM.forward."""


@dataclass(repr=False)
class Carry:
    """What the rows of a batch keep from one call to the next; detached.

    Attributes:
        z_H, z_L: ``[B, P + seq_len, D]`` states in the forward dtype; z_L has no positions where z_H is the only state.
        steps: ``[B]`` int32, segments so far.
        halted: ``[B]`` bool: the row is done and takes the next batch's data.
        current_data: the data that each row works on.
        seeds: ``[B]`` int64, of the random states and the noise of each row; a row that is refilled in training goes on
            with its next seed. None for families without them.
    """

    z_H: torch.Tensor
    z_L: torch.Tensor
    steps: torch.Tensor
    halted: torch.Tensor
    current_data: Batch
    seeds: torch.Tensor | None = None

    def copy_(self, other: "Carry") -> None:
        """Copy the values of ``other`` into the tensors of this carry, which keep their addresses."""
        for name in ("z_H", "z_L", "steps", "halted"):
            getattr(self, name).copy_(getattr(other, name))
        for name, values in self.current_data.items():
            values.copy_(other.current_data[name])
        if self.seeds is not None and other.seeds is not None:
            self.seeds.copy_(other.seeds)

    def __repr__(self) -> str:
        halting = ""
        if not self.halted.is_meta:
            halting = f", {int(self.halted.sum())} halted, steps {self.steps.tolist()}"
        dtype = str(self.z_H.dtype).removeprefix("torch.")
        return (
            f"Carry({len(self.halted)} rows{halting}, states {list(self.z_H.shape)} {dtype} on {self.z_H.device}, "
            f"data: {', '.join(self.current_data) or 'nothing'})"
        )


class LastWithGradient:
    """Runs a segment's updates one by one; only the last ``kept`` of ``total`` carry gradients (or tangents)."""

    def __init__(self, network: "HRMInner", kept: int, total: int, damping: Damping | None) -> None:
        self.network, self.damping = network, damping
        self.without_gradient = total - kept

    def __call__(self, level: Level, z: torch.Tensor, injection: torch.Tensor) -> torch.Tensor:
        damping, self.damping = self.damping, following(self.damping)
        if self.without_gradient == 0:
            return self.network.update(level, z, injection, damping=damping)
        self.without_gradient -= 1
        with torch.no_grad():
            new = self.network.update(level, z, injection, damping=damping)
            return without_tangents(new)  # no_grad keeps tangents


class HRMInner(nn.Module):
    """The recurrent network without halting: embedding, one segment, heads.

    Attributes:
        gradient: which updates of a segment carry gradients; starts as the configuration's and may be set from step to
            step, for example to :func:`hrm_kernels.fixed_point.warm_up`.
        eight_bit: the format of products in the updates without gradients (:func:`hrm_kernels.recurrent_cycles`), in
            training and evaluation: None, "fp8", "int8" or "auto".
    """

    eight_bit: str | None = None
    H_level: ReasoningModule
    L_level: Level
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
        if config.pos_encodings == "learned":
            self.embed_pos = Embedding(config.positions, dim, std, config.dtype)
        cos, sin = config.rope_tables()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._make_levels(config)
        self._make_initial_states(config)
        with torch.no_grad():  # at first no row halts: q_halt is far below 0, whatever the state
            self.q_head.weight.zero_()
            self.q_head.bias.fill_(-5)

    def _make_levels(self, config: HRMConfig) -> None:
        sizes = (config.hidden_size, config.num_heads, config.expansion, config.rms_norm_eps)
        rope2d = config.pos_encodings == "rope2d"
        self.H_level = ReasoningModule(config.H_layers, *sizes, rope2d, config.residual_scales)
        self.L_level = ReasoningModule(config.L_layers, *sizes, rope2d, config.residual_scales)

    def _make_initial_states(self, config: HRMConfig) -> None:
        for name in ("H_init", "L_init"):
            vector = torch.empty(config.hidden_size, dtype=torch.float32)
            self.register_buffer(name, truncated_normal_(vector, 1))

    @property
    def levels(self) -> tuple[Level, Level]:
        """The networks that update z_H and z_L."""
        return self.H_level, self.L_level

    @property
    def state_positions(self) -> tuple[int, int]:
        """Positions of z_H and z_L."""
        return self.config.positions, self.config.positions

    def initial_states(self, seeds: torch.Tensor) -> States:
        """``(z_H, z_L)`` of new rows, ``[B, P + seq_len, D]`` in the forward dtype.

        Args:
            seeds: ``[B]`` int64, one for each row, for families that start from random states; an HRM starts every row
                and position from H_init and L_init.
        """
        config = self.config
        shape = (seeds.shape[0], config.positions, config.hidden_size)
        return self.H_init.to(config.dtype).expand(shape), self.L_init.to(config.dtype).expand(shape)

    def restart(self, halted: torch.Tensor, seeds: torch.Tensor | None, z_H: torch.Tensor, z_L: torch.Tensor) -> States:
        """The states with those of ``halted`` rows (``[B]`` bool) replaced by their initial states."""
        rows = halted.view(-1, 1, 1)
        new_H, new_L = self.initial_states(torch.zeros_like(halted, dtype=torch.int64) if seeds is None else seeds)
        return torch.where(rows, new_H, z_H), torch.where(rows, new_L, z_L)

    def initial_seeds(self, rows: int, device: torch.device) -> torch.Tensor | None:
        """Seeds of the rows of a new batch, ``[rows]`` int64; None for families without randomness."""
        return None

    def damping(self, seeds: torch.Tensor | None, steps: torch.Tensor) -> Damping | None:
        """How the next segment is damped for rows with these seeds after ``steps`` segments, ``[B]``; None: not."""
        return None

    def embed(self, batch: Batch) -> torch.Tensor:
        """The input embedding ``[B, P + seq_len, D]`` in the forward dtype."""
        config = self.config
        x = self.embed_tokens(batch["inputs"])
        if config.puzzle_emb_ndim:
            puzzle = self.puzzle_emb(batch["puzzle_identifiers"]).to(config.dtype)
            padding = config.puzzle_emb_len * config.hidden_size - config.puzzle_emb_ndim
            puzzle = torch.nn.functional.pad(puzzle, (0, padding))
            x = torch.cat((puzzle.view(-1, config.puzzle_emb_len, config.hidden_size), x), dim=1)
        if config.pos_encodings == "learned":
            x = math.sqrt(0.5) * (x + cast(self.embed_pos.embedding_weight, config.dtype))
        return math.sqrt(config.hidden_size) * x

    def loops(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, damping: Damping | None = None) -> States:
        """One segment as in the paper, states and x ``[B, P + seq_len, D]``; its last updates carry gradients."""
        config, (H, L) = self.config, self.levels
        total, kept = config.H_cycles * (config.L_cycles + 1), self.gradient_updates()
        if kept < total:
            z_H, z_L = z_H.detach(), z_L.detach()
        update = LastWithGradient(self, kept, total, damping)

        for _H_cycle in range(config.H_cycles):
            for _L_cycle in range(config.L_cycles):
                z_L = update(L, z_L, z_H + x)
            z_H = update(H, z_H, z_L)
        return z_H, z_L

    def update(
        self,
        level: Level,
        z: torch.Tensor,
        injection: torch.Tensor,
        layers: Sequence[Layer] | None = None,
        damping: Damping | None = None,
    ) -> torch.Tensor:
        """One update of a state: ``level(z + injection)``, damped for families that do so.

        ``layers`` are the weights in the forward dtype. Without them they are converted here, at each use, so that the
        gradients of several uses are added in float32.
        """
        config = self.config
        layers = level.weights(config.dtype) if layers is None else layers
        return hrm_kernels.reasoning_module(
            z, injection, layers, self.cos, self.sin, level.num_heads, config.rms_norm_eps, damping=damping
        )

    def gradient_updates(self) -> int:
        """How many of a segment's last updates carry gradients.

        With the one-step gradient of the paper these are 2: the last update of z_L and the last one of z_H.
        """
        cycle = self.config.cycle
        mode = self.gradient if torch.is_grad_enabled() else "one_step"
        return gradient_steps(cycle, self.config.H_cycles * len(cycle), mode)

    def segment(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, damping: Damping | None = None) -> States:
        """:meth:`loops`, computed by :mod:`hrm.fused`."""
        return fused.segment(self, z_H, z_L, x, damping)

    def moved_segment(
        self,
        z_H: torch.Tensor,
        z_L: torch.Tensor,
        x: torch.Tensor,
        damping: Damping | None = None,
        weight: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A segment without gradients, which goes only part of the way: ``(z_H, z_L, change)``.

        Args:
            weight: ``[B]`` float32, how far each row goes; None is 1.

        Returns:
            The states, and ``[B, 2]`` float32: the squares of the whole way and of the new states, summed over both.
        """
        return fused.moved_segment(self, z_H, z_L, x, damping, weight)

    def next_q_values(self, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The Q values after one more segment: ``q_values(segment(z_H, z_L, x)[0])``."""
        return self.q_values(fused.first_position_after_segment(self, z_H, z_L, x).unsqueeze(1))

    def logits(self, z_H: torch.Tensor) -> torch.Tensor:
        """``[B, seq_len, vocab_size]`` in the forward dtype."""
        return self.lm_head(z_H[:, self.config.puzzle_emb_len :])

    def q_values(self, z_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(q_halt, q_continue)``, logits, ``[B]`` float32 both; they read the first position of z_H only."""
        q = self.q_head(z_H[:, 0]).float()
        return q[:, 0], q[:, 1]


class HRM(nn.Module):
    """The hierarchical reasoning model with adaptive computation time.

    ``state_dict()`` has the names of the published checkpoints (without their wrappers' prefixes). Each call runs one
    segment for every row of the batch::

        carry, outputs = model(model.initial_carry(batch), batch)
        while not carry.halted.all():
            carry, outputs = model(carry, batch)

    ``print(model)`` shows the sizes in one line, ``print(model.inner)`` the tree of modules.

    With ``sharded`` the rows of the puzzle embedding are divided among the processes of ``torch.distributed``
    (:class:`hrm_kernels.sharded_embedding.ShardedEmbedding`).

    Attributes:
        identifiers: which puzzle identifiers the rows of the puzzle embedding were trained on
            (:func:`hrm.data.fingerprint.names_fingerprint`); None if unknown.
        origin: the training run that the model was loaded from, and which of its checkpoints; None for other models.
        folder: the folder that the model was loaded from, where the threshold of :func:`hrm.calibrate` is; None for
            other models.
    """

    identifiers: str | None = None
    origin: str | None = None
    folder: Path | None = None
    _configured_by: ClassVar[type[ModelConfig]] = HRMConfig
    _inner_type: ClassVar[type[HRMInner]] = HRMInner

    def __init__(self, config: HRMConfig, sharded: bool = False) -> None:
        """
        Raises:
            InputError: the configuration is of another family.
        """
        super().__init__()
        expected = self._configured_by
        if not isinstance(config, expected) or config.family != expected.family:
            name, made = type(self).__name__, expected.__name__
            raise InputError(
                f"{name}: config is {type(config).__name__}, expected {made}; an HRMConfig makes an hrm.HRM, a "
                f"TRMConfig an hrm.TRM, an EqRConfig an hrm.EqR, a URMConfig an hrm.URM, and {made}.parse reads plain "
                "values"
            )
        self.config = config
        self.inner = self._inner_type(config, sharded)

    @property
    def puzzle_emb(self) -> SparseEmbedding | None:
        """The puzzle embedding, for :class:`hrm_kernels.optim.SparseSignSGD`; None without one."""
        return self.inner.puzzle_emb if self.config.puzzle_emb_ndim else None

    def initial_carry(self, batch: Batch) -> Carry:
        """A carry with every row halted, so that the first call takes all rows of its batch.

        The seeds of families that have them are 0 in evaluation, so that an answer does not depend on the place in a
        batch, and differ in training. They may be replaced.

        Raises:
            InputError: the batch does not fit the configuration.
        """
        batch = check_batch(self.config, batch)
        inputs = batch["inputs"]
        rows, device = inputs.shape[0], inputs.device
        z_H, z_L = (
            torch.zeros(rows, positions, self.config.hidden_size, dtype=self.config.dtype, device=device)
            for positions in self.inner.state_positions
        )
        return Carry(
            z_H=z_H,
            z_L=z_L,
            steps=torch.zeros(rows, dtype=torch.int32, device=device),
            halted=torch.ones(rows, dtype=torch.bool, device=device),
            current_data={name: torch.zeros_like(values) for name, values in batch.items()},
            seeds=self.inner.initial_seeds(rows, device),
        )

    @with_frozen_weights
    def forward(
        self,
        carry: Carry,
        batch: Batch,
        min_steps: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
    ) -> tuple[Carry, Outputs]:
        """Refill the rows that have halted from ``batch``, run one segment, decide which rows halt.

        Args:
            carry: from :meth:`initial_carry` or the last call.
            batch: the data for rows that have halted.
            min_steps: training only: ``[B]`` int32, segments that a row runs at least (exploration); None draws them
                from torch's global generator with ``halt_exploration_prob``.
            weight: without gradients only: ``[B]`` float32, how far the segment moves each row, 0 to 1. None is 1. The
                fixed points are the same, and a row that oscillates comes to rest (FPRM, arXiv 2606.18206).

        Returns:
            The new carry, and outputs: ``logits [B, seq_len, vocab_size]`` in the forward dtype, ``q_halt_logits`` and
            ``q_continue_logits`` ``[B]`` float32, and in training with halt_max_steps > 1 ``target_q_continue [B]``
            (for models that learn it). In evaluation rows halt after halt_max_steps segments only; use the Q values
            (:func:`hrm.act.prefers_halting`) to stop earlier. Without gradients also ``change [B, 2]``: the squares of
            the whole way that the segment goes, and of the new states, summed over both states of a row.

        Raises:
            InputError: the batch does not fit the configuration, or the carry; or there are gradients with ``weight``.
        """
        config, inner = self.config, self.inner
        batch = check_batch(config, batch)
        check_carry(carry.halted, carry.current_data, batch)
        z_H, z_L, steps, data, seeds = self._refill(carry, batch)

        x, damping, outputs = self._embed(data), inner.damping(seeds, steps), {}
        if may_differentiate():
            if weight is not None:
                raise InputError("weight is for calls without gradients; call the model under torch.no_grad()")
            z_H, z_L = inner.segment(z_H, z_L, x, damping)
        else:
            z_H, z_L, outputs["change"] = inner.moved_segment(z_H, z_L, x, damping, weight)
        steps = steps + 1
        q_halt, q_continue = inner.q_values(z_H)
        outputs |= {"logits": inner.logits(z_H), "q_halt_logits": q_halt, "q_continue_logits": q_continue}

        with torch.no_grad():
            z_H, z_L = z_H.detach().to(config.dtype), z_L.detach().to(config.dtype)  # autocast may change dtypes
            halted = self._halts(steps, q_halt, q_continue, min_steps)
            if self.training and config.halt_max_steps > 1 and config.learns_to_continue:
                next_q = inner.next_q_values(z_H, z_L, x)
                outputs["target_q_continue"] = act.target_q_continue(steps, *next_q, config.halt_max_steps)
        return Carry(z_H, z_L, steps, halted, data, seeds), outputs

    def _refill(
        self, carry: Carry, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Batch, torch.Tensor | None]:
        """The carry's states, steps, data and seeds; rows that have halted start over with the data of ``batch``."""
        halted, seeds = carry.halted, carry.seeds
        data = {
            name: torch.where(halted.view(-1, *(1,) * (values.ndim - 1)), values, carry.current_data[name])
            for name, values in batch.items()
        }
        if seeds is not None and self.training:
            seeds = seeds + halted
        z_H, z_L = self.inner.restart(halted, seeds, carry.z_H, carry.z_L)
        return z_H, z_L, torch.where(halted, 0, carry.steps), data, seeds

    def _embed(self, data: Batch) -> torch.Tensor:
        try:
            return self.inner.embed(data)
        except IndexError:  # only a CPU raises it; a check before the look-up would make the host wait for a GPU
            check_range(self.config, data)
            raise

    def _halts(
        self, steps: torch.Tensor, q_halt: torch.Tensor, q_continue: torch.Tensor, min_steps: torch.Tensor | None
    ) -> torch.Tensor:
        """The rows that halt after this segment, ``[B]`` bool; in evaluation those after their last one."""
        config = self.config
        if not self.training:
            return steps >= config.halt_max_steps
        if min_steps is None:
            min_steps = act.draw_min_steps(
                len(steps), config.halt_max_steps, config.halt_exploration_prob, device=steps.device
            )
        return act.halts(steps, q_halt, q_continue, config.halt_max_steps, min_steps)

    @classmethod
    def from_pretrained(cls, name_or_folder: Path | str, **options: Any) -> Self:
        """Load a model from the hub or a folder: :func:`hrm.hub.from_pretrained`, which lists the options.

        ``HRM.from_pretrained`` takes every family, the other classes their own::

            model = hrm.HRM.from_pretrained("sudoku4")
            model = hrm.TRM.from_pretrained("owner/name", revision="v1.0")
        """
        return _hub().from_pretrained(cls, name_or_folder, **options)

    def save_pretrained(self, folder: Path | str, **options: Any) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card: :func:`hrm.hub.save_pretrained`."""
        _hub().save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the hub, and return the commit's address: :func:`hrm.hub.push_to_hub`."""
        return _hub().push_to_hub(self, repo_id, **options)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.parameters())
        origin = f"; from {self.origin}" if self.origin else ""
        return f"{type(self).__name__}({_short(parameters)} parameters, {self.config.summary()}{origin})"


def _hub() -> ModuleType:
    """:mod:`hrm.hub`, which is above this module: it loads models of every family."""
    return import_module("hrm.hub")


def _short(number: int) -> str:
    """For example 27.3M."""
    for unit, size in (("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)

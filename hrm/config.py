"""The configuration of a model, with the field names of the published code."""

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from hrm.errors import InputError, describe
from hrm.sizes import Cycles, Identifiers, Layers, Length, Vocabulary, Width
from hrm_kernels.instruction_sets import bfloat16_is_fast
from hrm_kernels.nn import rope_tables, rope_tables_2d

Gradient = Literal["one_step", "last_cycle", "full"] | PositiveInt
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def automatic_dtype(device: torch.device | str) -> str:
    """``forward_dtype`` where it is ``auto``: bfloat16 on a GPU, and on a CPU that multiplies it in hardware.

    The ``cpu`` backend then has AMX or AVX512-BF16 instructions to use. Other CPUs compute in float32.
    """
    is_fast = bfloat16_is_fast() if torch.device(device).type == "cpu" else torch.device(device).type == "cuda"
    return "bfloat16" if is_fast else "float32"


class ModelConfig(BaseModel):
    """What the families of models have in common; :class:`HRMConfig` and its siblings describe all fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    family: ClassVar[str]
    has_random_starts: ClassVar[bool] = False
    """Whether rows with different seeds start from different states."""

    seq_len: Length
    vocab_size: Vocabulary
    num_puzzle_identifiers: Identifiers = 1
    puzzle_emb_ndim: NonNegativeInt = Field(default=0, le=2**20)
    hidden_size: Width = 512
    expansion: float = Field(default=4.0, gt=0, le=2**10)
    num_heads: Width = 8
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    board_height: Length | None = None
    board_width: Length | None = None
    halt_max_steps: PositiveInt = Field(default=16, le=2**20)
    halt_exploration_prob: float = Field(default=0.1, ge=0, le=1)
    forward_dtype: Literal["float32", "bfloat16", "float16", "float64"] = "bfloat16"
    recompute: bool = False

    if TYPE_CHECKING:  # defined by each family
        pos_encodings: str
        H_cycles: int
        L_cycles: int
        gradient: Gradient

        @property
        def puzzle_emb_len(self) -> int: ...
        def _layers(self) -> str: ...

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; change one of them"
            )
        pairs = {"rope": 2, "rope2d": 4}.get(self.pos_encodings, 1)
        if self.head_dim % pairs:
            what = "RoPE rotates pairs, so it must be even" if pairs == 2 else "2D RoPE needs a multiple of 4"
            raise ValueError(f"head_dim (hidden_size / num_heads) is {self.head_dim}; {what}")
        return self

    @model_validator(mode="after")
    def _board_fits(self) -> Self:
        if self.pos_encodings == "rope2d" and math.prod(self.board) != self.seq_len:
            raise ValueError(
                f"pos_encodings rope2d needs a board of seq_len {self.seq_len} cells, got board_height "
                f"{self.board_height} and board_width {self.board_width}; pass both"
            )
        return self

    @property
    def board(self) -> tuple[int, int]:
        """Height and width of the board that the tokens fill; a square where neither is configured."""
        height, width = self.board_height, self.board_width
        if height is None and width is None:
            height = width = math.isqrt(self.seq_len)
        return height or self.seq_len // (width or 1), width or self.seq_len // (height or 1)

    def rope_tables(self) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """``cos`` and ``sin`` of all positions, ``[P + seq_len, head_dim]`` float32; None without RoPE."""
        if self.pos_encodings == "rope":
            return rope_tables(self.positions, self.head_dim, self.rope_theta)
        if self.pos_encodings == "rope2d":
            return rope_tables_2d(*self.board, self.head_dim, self.rope_theta, prefix=self.puzzle_emb_len)
        return None, None

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def positions(self) -> int:
        """Positions of a sequence: those of the puzzle embedding, and the tokens."""
        return self.puzzle_emb_len + self.seq_len

    @property
    def dtype(self) -> torch.dtype:
        """``forward_dtype`` as a torch dtype."""
        return DTYPES[self.forward_dtype]

    @property
    def residual_scales(self) -> tuple[float, float] | None:
        """alpha_1 and alpha_2 at first, of pre-norm blocks; None for post-norm blocks."""
        return None

    @property
    def learns_to_continue(self) -> bool:
        """Whether the model learns q_continue, for which a training call runs a second segment."""
        return True

    @property
    def cycle(self) -> list[str]:
        """The updates of a cycle in order, by the state that each changes."""
        return ["L"] * self.L_cycles + ["H"]

    def summary(self) -> str:
        """The sizes in a few words, for the ``repr`` of a model."""
        puzzles = f", {self.num_puzzle_identifiers} puzzle identifiers" if self.puzzle_emb_ndim else ""
        return (
            f"hidden {self.hidden_size}, {self._layers()} layers, {self.H_cycles}x{self.L_cycles} cycles, "
            f"{self.seq_len} tokens, vocabulary {self.vocab_size}{puzzles}, {self.forward_dtype}"
        )

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Only the values that differ from the defaults."""
        fields = type(self).model_fields
        return [(name, value) for name, value in self if value != fields[name].default]

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """A configuration from plain values.

        Raises:
            InputError: a value is unknown, missing or invalid; the message names it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"model configuration: {describe(error)}") from None


class HRMConfig(ModelConfig):
    """Sizes and options of an :class:`hrm.HRM`; the defaults are the published 27M model's.

    Attributes:
        seq_len: tokens of a puzzle.
        vocab_size: number of token values.
        num_puzzle_identifiers: rows of the puzzle embedding.
        puzzle_emb_ndim: width of a puzzle's embedding, 0 for none.
        H_cycles, L_cycles: updates of z_H in a segment, and updates of z_L before each of them.
        H_layers, L_layers: blocks of the H-level and of the L-level.
        hidden_size: D.
        expansion: of the SwiGLU; the inner size is ``hrm_kernels.nn.swiglu_inner_size``.
        num_heads: attention heads.
        pos_encodings: ``"rope"``, ``"rope2d"`` (the rows and the columns of the board) or ``"learned"``.
        board_height, board_width: of the board for ``rope2d``; None for a square.
        gradient: which updates of a segment carry gradients (:func:`hrm_kernels.fixed_point`); published:
            ``"one_step"``, the last update of each level.
        norm: ``"post"`` as published, or ``"pre"``: pre-norm blocks with learned residual scales, as in FPRM (arXiv
            2606.18206). Their states are not normalised.
        alpha_1_init, alpha_2_init: of the residual scales at first (:func:`hrm_kernels.nn.residual_scales`).
        recompute: keep only states for the backward, which computes the rest again.
        rms_norm_eps, rope_theta: as in the ops.
        halt_max_steps: the most segments for one puzzle in training, and by default in evaluation.
        halt_exploration_prob: probability that a row of a training batch draws a minimum number of segments.
        forward_dtype: dtype of the activations; weights are float32 and converted to it for use. float64 is for
            checks: only the reference backend supports it.
    """

    family = "hrm"

    H_cycles: Cycles = 2
    L_cycles: Cycles = 2
    H_layers: Layers = 4
    L_layers: Layers = 4
    pos_encodings: Literal["rope", "rope2d", "learned"] = "rope"
    gradient: Gradient = "one_step"
    norm: Literal["post", "pre"] = "post"
    alpha_1_init: float = Field(default=0.5, gt=0, lt=1)
    alpha_2_init: float = Field(default=0.5, gt=0, lt=1)

    @property
    def residual_scales(self) -> tuple[float, float] | None:
        """alpha_1 and alpha_2 at first; None for post-norm blocks."""
        return (self.alpha_1_init, self.alpha_2_init) if self.norm == "pre" else None

    @property
    def puzzle_emb_len(self) -> int:
        """Positions before the puzzle that hold its embedding."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    def _layers(self) -> str:
        return f"{self.H_layers}+{self.L_layers}"


class TRMConfig(ModelConfig):
    """Sizes and options of an :class:`hrm.TRM`; the defaults are the published ones.

    Attributes:
        seq_len: tokens of a puzzle.
        vocab_size: number of token values.
        num_puzzle_identifiers: rows of the puzzle embedding.
        puzzle_emb_ndim: width of a puzzle's embedding, 0 for none.
        puzzle_emb_len: positions before the puzzle that hold its embedding; 0 for as few as it needs. Always 0 without
            an embedding.
        H_cycles, L_cycles: updates of z_H in a segment, and updates of z_L before each of them.
        L_layers: blocks of the network, which updates both states.
        hidden_size: D.
        expansion: of the SwiGLUs; the inner size is ``hrm_kernels.nn.swiglu_inner_size``.
        num_heads: attention heads.
        mlp_t: blocks mix positions with a SwiGLU (:func:`hrm_kernels.token_mixing`) instead of attention.
        pos_encodings: ``"rope"`` or ``"rope2d"`` (the rows and the columns of the board), both with attention only;
            ``"learned"`` or ``"none"``.
        board_height, board_width: of the board for ``rope2d``; None for a square.
        no_ACT_continue: rows halt where q_halt > 0; with False the model learns q_continue as an HRM does, for which a
            training call runs a second segment.
        gradient: which updates of a segment carry gradients (:func:`hrm_kernels.fixed_point`); published:
            ``"last_cycle"``.
        norm: ``"post"`` as published, or ``"pre"``: pre-norm blocks with learned residual scales, as in FPRM (arXiv
            2606.18206). Their states are not normalised.
        alpha_1_init, alpha_2_init: of the residual scales at first (:func:`hrm_kernels.nn.residual_scales`).
        recompute: keep only states for the backward, which computes the rest again.
        rms_norm_eps, rope_theta: as in the ops.
        halt_max_steps: the most segments for one puzzle in training, and by default in evaluation.
        halt_exploration_prob: probability that a row of a training batch draws a minimum number of segments.
        forward_dtype: dtype of the activations; weights are float32 and converted to it for use. float64 is for
            checks: only the reference backend supports it.
    """

    family = "trm"

    puzzle_emb_len: NonNegativeInt = Field(default=16, validate_default=True, le=2**16)
    H_cycles: Cycles = 3
    L_cycles: Cycles = 6
    L_layers: Layers = 2
    mlp_t: bool = False
    pos_encodings: Literal["rope", "rope2d", "learned", "none"] = "rope"
    no_ACT_continue: bool = True
    gradient: Gradient = "last_cycle"
    norm: Literal["post", "pre"] = "post"
    alpha_1_init: float = Field(default=0.5, gt=0, lt=1)
    alpha_2_init: float = Field(default=0.5, gt=0, lt=1)

    @property
    def residual_scales(self) -> tuple[float, float] | None:
        """alpha_1 and alpha_2 at first; None for post-norm blocks."""
        return (self.alpha_1_init, self.alpha_2_init) if self.norm == "pre" else None

    @property
    def learns_to_continue(self) -> bool:
        """False with ``no_ACT_continue``."""
        return not self.no_ACT_continue

    def _layers(self) -> str:
        return f"{self.L_layers} mixing" if self.mlp_t else f"{self.L_layers}"

    @field_validator("puzzle_emb_len")
    @classmethod
    def _holds_the_embedding(cls, positions: int, info: ValidationInfo) -> int:
        width, dim = info.data.get("puzzle_emb_ndim"), info.data.get("hidden_size")
        if width is None or dim is None:  # invalid, which has its own message
            return positions
        least = -(-width // dim)
        if width and positions and positions < least:
            raise ValueError(
                f"{positions} positions of {dim} cannot hold puzzle_emb_ndim {width}; use {least} or more, or 0"
            )
        return (positions or least) if width else 0

    @model_validator(mode="after")
    def _mixing_has_no_rope(self) -> Self:
        if self.mlp_t and self.pos_encodings in ("rope", "rope2d"):
            raise ValueError(
                f"pos_encodings {self.pos_encodings} needs attention, which mlp_t replaces; set pos_encodings=none"
            )
        if self.mlp_t and self.norm == "pre":
            raise ValueError("norm pre is for blocks with attention, which mlp_t replaces; set one of them only")
        return self


class EqRConfig(TRMConfig):
    """Sizes and options of an :class:`hrm.EqR`; the defaults are the published ones.

    It has all fields of :class:`hrm.TRMConfig`. A published EqR has no puzzle embedding.

    Attributes:
        lambda_: weight of the new state in every update, 0 to 1.
        noise_scale: standard deviation of the noise in every update, in training and in evaluation.
        H_init_std, L_init_std: standard deviations of the random states from which rows start.
    """

    family = "eqr"
    has_random_starts = True

    lambda_: float = Field(default=0.95, ge=0, le=1)
    noise_scale: float = Field(default=0.01, ge=0)
    H_init_std: float = Field(default=1.0, ge=0)
    L_init_std: float = Field(default=1.0, ge=0)


class URMConfig(ModelConfig):
    """Sizes and options of an :class:`hrm.URM`; the defaults are the published ones.

    Attributes:
        seq_len: tokens of a puzzle.
        vocab_size: number of token values.
        num_puzzle_identifiers: rows of the puzzle embedding.
        puzzle_emb_ndim: width of a puzzle's embedding, 0 for none.
        H_cycles, L_cycles: a segment updates the state H_cycles times L_cycles times.
        num_layers: blocks of an update.
        hidden_size: D.
        expansion: of the ConvSwiGLU; the inner size is ``hrm_kernels.nn.swiglu_inner_size``.
        num_heads: attention heads.
        pos_encodings: ``"rope"``.
        gradient: how many of a segment's last updates carry gradients (:func:`hrm_kernels.fixed_point`); published:
            ``"last_cycle"``, the last L_cycles.
        recompute: keep only states for the backward, which computes the rest again.
        rms_norm_eps, rope_theta: as in the ops.
        halt_max_steps: the most segments for one puzzle in training, and by default in evaluation; the published code
            calls it ``loops``, which is understood too.
        halt_exploration_prob: probability that a row of a training batch draws a minimum number of segments.
        forward_dtype: dtype of the activations; weights are float32 and converted to it for use. float64 is for
            checks: only the reference backend supports it.
    """

    family = "urm"

    H_cycles: Cycles = 4
    L_cycles: Cycles = 3
    num_layers: Layers = 8
    pos_encodings: Literal["rope"] = "rope"
    gradient: Gradient = "last_cycle"

    @model_validator(mode="before")
    @classmethod
    def _loops_are_segments(cls, values: Any) -> Any:
        if isinstance(values, dict) and "loops" in values:
            if "halt_max_steps" in values:
                raise ValueError("loops is the published name of halt_max_steps; pass one of them")
            values = {"halt_max_steps" if name == "loops" else name: value for name, value in values.items()}
        return values

    @property
    def puzzle_emb_len(self) -> int:
        """Positions before the puzzle that hold its embedding."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def learns_to_continue(self) -> bool:
        """False: rows halt where q_halt > 0."""
        return False

    @property
    def cycle(self) -> list[str]:
        """L_cycles updates of the only state, z_H."""
        return ["H"] * self.L_cycles

    def _layers(self) -> str:
        return f"{self.num_layers}"


FAMILIES: dict[str, type[ModelConfig]] = {
    config.family: config for config in (HRMConfig, TRMConfig, EqRConfig, URMConfig)
}
"""The configuration of each family, by name."""

"""The model's configuration, in the field names of the published code."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from hrm.errors import InputError, describe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HRMConfig(BaseModel):
    """Sizes and options of an :class:`hrm.HRM`; the defaults are the published 27M model's.

    Attributes:
        seq_len: tokens of a puzzle.
        vocab_size: number of token values.
        num_puzzle_identifiers: rows of the puzzle embedding.
        puzzle_emb_ndim: width of a puzzle's embedding, 0 for none.
        H_cycles, L_cycles: updates of z_H in a segment; updates of z_L for each of them.
        H_layers, L_layers: blocks of the H-level and the L-level.
        hidden_size: D.
        expansion: of the SwiGLU; the inner size is ``hrm_kernels.nn.swiglu_inner_size``.
        num_heads: attention heads.
        pos_encodings: ``"rope"`` or ``"learned"``.
        rms_norm_eps, rope_theta: as in the ops.
        halt_max_steps: the most segments for one puzzle in training (and in evaluation, unless told otherwise).
        halt_exploration_prob: probability with which a row of a training batch draws a minimum of segments.
        forward_dtype: dtype of activations and of the weights where they are used; parameters are float32.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq_len: PositiveInt
    vocab_size: PositiveInt
    num_puzzle_identifiers: PositiveInt = 1
    puzzle_emb_ndim: NonNegativeInt = 0
    H_cycles: PositiveInt = 2
    L_cycles: PositiveInt = 2
    H_layers: PositiveInt = 4
    L_layers: PositiveInt = 4
    hidden_size: PositiveInt = 512
    expansion: float = Field(default=4.0, gt=0)
    num_heads: PositiveInt = 8
    pos_encodings: Literal["rope", "learned"] = "rope"
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    halt_max_steps: PositiveInt = 16
    halt_exploration_prob: float = Field(default=0.1, ge=0, le=1)
    forward_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    @model_validator(mode="after")
    def _heads_fit(self) -> "HRMConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; change one of them"
            )
        if self.pos_encodings == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head_dim (hidden_size / num_heads) is {self.head_dim}; RoPE turns pairs and needs it even"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def puzzle_emb_len(self) -> int:
        """Positions in front of the puzzle that hold its embedding."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def positions(self) -> int:
        """Positions of a sequence: puzzle embedding and tokens."""
        return self.puzzle_emb_len + self.seq_len

    @property
    def dtype(self) -> torch.dtype:
        """``forward_dtype`` as a torch dtype."""
        return DTYPES[self.forward_dtype]

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "HRMConfig":
        """A config from plain values.

        Raises:
            InputError: a value is unknown, missing or impossible; the message names it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"model configuration: {describe(error)}") from None

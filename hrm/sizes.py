"""How large a model, or its data, may be: sizes as types of configuration fields.

Each bound is far beyond what anybody has trained. Past it a slip of the keyboard, or a file from a stranger, would ask
for terabytes or for days; within it products of sizes fit into 64 bits.
"""

from typing import Annotated

from pydantic import Field, PositiveInt

Width = Annotated[PositiveInt, Field(le=2**17)]
"""hidden_size, num_heads."""
Length = Annotated[PositiveInt, Field(le=2**20)]
"""Tokens of a puzzle."""
Vocabulary = Annotated[PositiveInt, Field(le=2**24)]
"""Number of token values."""
Identifiers = Annotated[PositiveInt, Field(le=2**31 - 1)]
"""Rows of a puzzle embedding, numbered in int32."""
Layers = Annotated[PositiveInt, Field(le=2**10)]
Cycles = Annotated[PositiveInt, Field(le=2**12)]

"""How large a model, or its data, may be: sizes as types of configuration fields.

Each bound is far beyond what anybody has trained. Past it a slip of the keyboard, or a file from a stranger, would ask
for terabytes or for days; within it products of sizes fit into 64 bits.
"""

import os
from typing import Annotated

from pydantic import Field, PositiveInt

from hrm.errors import InputError

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


def require_memory(needed: int, what: str, way_out: str) -> None:
    """Refuse before the work what this machine's memory cannot hold: it would be killed, or take the machine down.

    Args:
        needed: bytes.
        what: what takes them, in words.
        way_out: what to do instead.

    Raises:
        InputError: there is less memory.
    """
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise InputError(
            f"{what} would take {needed / 2**30:.0f} GB, and this machine has {present / 2**30:.0f} GB of memory; "
            f"{way_out}"
        )

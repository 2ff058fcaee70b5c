"""Upper bounds of a model's and its data's sizes, as types of configuration fields.

Each bound is far beyond any trained model. Beyond it, a typing error or an untrusted file would need terabytes or days;
below it, products of sizes fit into 64 bits.
"""

import os
from pathlib import Path
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


def host_memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, or its container's; None if the system does not say."""
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # "max": the container has no limit
            pass
    return min(sizes)


def require_memory(needed: int, what: str, way_out: str) -> None:
    """Refuse work that needs more memory than this machine has, before the system kills it.

    Args:
        needed: bytes.
        what: the data that needs them, in words.
        way_out: what to do instead.

    Raises:
        InputError: the machine has less memory.
    """
    present = host_memory()
    if present is not None and needed > present:
        raise InputError(
            f"{what} would take {needed / 2**30:.0f} GB, and this machine has {present / 2**30:.0f} GB of memory; "
            f"{way_out}"
        )

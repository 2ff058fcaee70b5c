"""The tables: for a device and a dtype, which candidate runs a pass over so many rows."""

import functools
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "devices"
CANDIDATES = ("library", "fused", "fused_small", "whole_row")
"""Ways through a block without gradients, see :data:`hrm_kernels.ops.transformer_block.triton_block.PATHS`."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Limits = list[tuple[int | None, str]]
"""``(rows at most, candidate)``, in rising order; None has no limit and is the last."""


class TuningError(ValueError):
    """A table on disk is damaged."""


def default(dtype: torch.dtype, rows: int) -> str:
    """The choice for a device without a table; reasoned, not measured.

    float32 products in Triton run without tensor cores: ``library``. Else ``fused``; and up to 1024 rows, of which the
    large tiles would make 32 programs for the narrow products, a quarter of a large GPU, ``fused_small``.
    """
    if dtype is torch.float32:
        return "library"
    return "fused_small" if rows <= 1024 else "fused"


def choose(device: torch.device, dtype: torch.dtype, rows: int) -> str:
    """The candidate for a pass over ``rows`` tokens.

    Raises:
        TuningError: the device's table is damaged.
    """
    for limit, candidate in _limits(device, dtype):
        if limit is None or rows <= limit:
            return candidate
    return default(dtype, rows)


@functools.cache
def _limits(device: torch.device, dtype: torch.dtype) -> Limits:
    if device.type != "cuda":
        return []
    path = path_of(torch.cuda.get_device_name(device))
    return read(path).get(str(dtype).removeprefix("torch."), []) if path.exists() else []


def path_of(device_name: str) -> Path:
    """Where the table of a device lies: ``NVIDIA H200`` -> ``nvidia-h200.json``."""
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


def read(path: Path) -> dict[str, Limits]:
    """A table, checked.

    Raises:
        TuningError: it is damaged.
    """
    try:
        table = json.loads(path.read_text())["block"]
        for name, limits in table.items():
            _check(name, limits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise TuningError(
            f"the tuning table {path} is damaged ({reason}); remove it to use the defaults, or measure it again with "
            "python -m hrm_kernels.tuning"
        ) from None
    return {name: [(limit, candidate) for limit, candidate in limits] for name, limits in table.items()}


def _check(name: str, limits: Any) -> None:
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}")
    before = 0
    for index, (limit, candidate) in enumerate(limits):
        if candidate not in CANDIDATES:
            raise ValueError(f"unknown candidate {candidate!r}")
        last = index == len(limits) - 1
        if (limit is None) != last or not last and not (isinstance(limit, int) and limit > before):
            raise ValueError(f"{name}: limits must rise to a last one without limit")
        before = limit or 0


def best(seconds: Mapping[int, Mapping[str, float]]) -> Limits:
    """The table for measurements ``{rows: {candidate: seconds}}``: each number of rows up to the next goes like it."""
    chosen: Limits = []
    for rows in sorted(seconds):
        candidate = min(seconds[rows], key=lambda name: seconds[rows][name])
        if chosen and chosen[-1][1] == candidate:
            chosen.pop()
        chosen.append((rows, candidate))
    return [*chosen[:-1], (None, chosen[-1][1])]


def write(path: Path, table: Mapping[str, Sequence[tuple[int | None, str]]], measured: Mapping[str, Any]) -> None:
    """Write a table, whole or not at all, with what it was measured with and how long everything took."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"block": table, **measured}, file, indent=1)
            file.write("\n")
        os.chmod(part, 0o644)  # mkstemp's are for the owner alone
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
    _limits.cache_clear()

"""The tuning tables: the candidate for each device, dtype and number of rows, and the ops where ``cuda`` is faster."""

import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hrm_kernels.autodiff import traced_as_constant

FOLDER = Path(__file__).parent / "devices"
CANDIDATES = ("library", "fused", "fused_small", "whole_row", "persistent")
"""Implementations of a block without gradients: :data:`hrm_kernels.ops.transformer_block.triton_block.PATHS`."""

EIGHT_BIT = ("off", "fused", "persistent", "library")
"""Those of products in 8 bits: :data:`hrm_kernels.ops.transformer_block.triton_block.EIGHT_BIT_PATHS`. With "off" a
pass runs without them, because that was measured to be faster."""

EIGHT_BIT_FORMATS = ("fp8", "int8")

ATTENTION = ("triton", "flash-attn 3", "cuDNN")
"""Who computes long attention without gradients: ours, or :mod:`hrm_kernels.ops.rope_attention.library_kernels`."""

COMPARED = ("adam_atan2", "rope_attention", "rope_attention_backward", "sparse_sign_sgd", "stablemax_cross_entropy")
"""Ops with a ``cuda`` and a ``triton`` backend for the same calls; the faster one should run.

``rope_attention`` is forward with and without backward. ``rope_attention_backward`` is for passes of blocks, which may
use ``cuda`` for the backward only.
"""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Limits = list[tuple[int | None, str]]
"""``(largest number of rows, candidate)``, in ascending order; the last limit is None."""


class Table(NamedTuple):
    """The results for a device.

    Attributes:
        block: limits by dtype.
        cuda: the ops of :data:`COMPARED` where ``cuda`` was faster.
        eight_bit: limits by format, of bfloat16 states.
        long_attention: one of :data:`ATTENTION` by dtype.
    """

    block: dict[str, Limits]
    cuda: frozenset[str]
    eight_bit: dict[str, Limits] = {}
    long_attention: dict[str, str] = {}


class TuningError(ValueError):
    """A table on disk is damaged."""


def default(dtype: torch.dtype, rows: int) -> str:
    """Return the candidate for a device without a table; an estimate, not a measurement.

    float32 products in Triton run without tensor cores: ``library``. Else ``fused``; but ``fused_small`` up to 1024
    rows, where large tiles would give only 32 programs for the narrow products, a quarter of a large GPU.
    """
    if dtype is torch.float32:
        return "library"
    return "fused_small" if rows <= 1024 else "fused"


def choose(device: torch.device, dtype: torch.dtype, rows: int) -> str:
    """Return the candidate for a pass over ``rows`` tokens.

    Raises:
        TuningError: the device's table is damaged.
    """
    for limit, candidate in _of_device(device).block.get(str(dtype).removeprefix("torch."), []):
        if limit is None or rows <= limit:
            return candidate
    return default(dtype, rows)


def default_eight_bit() -> str:
    """Return the candidate for products in 8 bits on a device without a table."""
    return "fused"


def choose_eight_bit(device: torch.device, name: str, rows: int) -> str:
    """Return the candidate of :data:`EIGHT_BIT` for a pass over ``rows`` tokens in a format.

    Raises:
        TuningError: the device's table is damaged.
    """
    for limit, candidate in _of_device(device).eight_bit.get(name, []):
        if limit is None or rows <= limit:
            return candidate
    return default_eight_bit()


def choose_long_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Return who computes long attention without gradients, one of :data:`ATTENTION`; without a table ``triton``.

    Raises:
        TuningError: the device's table is damaged.
    """
    return _of_device(device).long_attention.get(str(dtype).removeprefix("torch."), "triton")


def cuda_is_unproven(op: str) -> Callable[..., str | None]:
    """For ``Backend.passed_over`` of the ``cuda`` backend of one of :data:`COMPARED`.

    Returns:
        A function of the op's arguments. It returns None if the device's table says that ``cuda`` is faster, else the
        reason to prefer ``triton``, and raises TuningError if the table is damaged.
    """
    if op not in COMPARED:
        raise ValueError(f"cuda_is_unproven: got op {op!r}, expected one of {', '.join(COMPARED)}")

    def passed_over(first: torch.Tensor | Sequence[torch.Tensor], *rest: Any) -> str | None:
        device = first.device if isinstance(first, torch.Tensor) else first[0].device
        if device.type == "cuda" and _is_proven(op, device.index):
            return None
        return "not measured to be faster than triton here; python -m hrm_kernels.tuning compares them"

    return passed_over


@traced_as_constant
def _is_proven(op: str, index: int) -> bool:
    return op in _of_device(torch.device("cuda", index)).cuda


@functools.cache
def _of_device(device: torch.device) -> Table:
    if device.type == "cuda":
        path = path_of(torch.cuda.get_device_name(device))
        if path.exists():
            return read(path)
    return Table({}, frozenset())


def path_of(device_name: str) -> Path:
    """The path of a device's table: ``NVIDIA H200`` -> ``nvidia-h200.json``."""
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


def read(path: Path) -> Table:
    """Read and check a table.

    Raises:
        TuningError: the table is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        block, cuda = content["block"], content.get("cuda", [])
        eight_bit = content.get("eight_bit", {})
        for name, limits in block.items():
            _check(name, limits, DTYPES, CANDIDATES, "dtype")
        for name, limits in eight_bit.items():
            _check(name, limits, EIGHT_BIT_FORMATS, EIGHT_BIT, "format")
        attention = content.get("long_attention", {})
        for name, candidate in attention.items():
            _check(name, [(None, candidate)], DTYPES, ATTENTION, "dtype")
        if not isinstance(cuda, list) or any(op not in COMPARED for op in cuda):
            raise ValueError(f"cuda is {cuda!r}, expected a list of {', '.join(COMPARED)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise TuningError(
            f"the tuning table {path} is damaged ({reason}); remove it to use the defaults, or measure it again with "
            "python -m hrm_kernels.tuning"
        ) from None
    limits, limits_8 = (
        {name: [(limit, candidate) for limit, candidate in limits] for name, limits in part.items()}
        for part in (block, eight_bit)
    )
    return Table(limits, frozenset(cuda), limits_8, attention)


def _check(name: str, limits: Any, names: Collection[str], candidates: Collection[str], kind: str) -> None:
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}")
    before = 0
    for index, (limit, candidate) in enumerate(limits):
        if candidate not in candidates:
            raise ValueError(f"unknown candidate {candidate!r}")
        last = index == len(limits) - 1
        if (limit is None) != last or not last and not (isinstance(limit, int) and limit > before):
            raise ValueError(f"{name}: limits must be ascending, and only the last one null")
        before = limit or 0


def best(seconds: Mapping[int, Mapping[str, float]]) -> Limits:
    """Return the limits for measurements ``{rows: {candidate: seconds}}``, each valid up to its number of rows."""
    chosen: Limits = []
    for rows in sorted(seconds):
        candidate = min(seconds[rows], key=lambda name: seconds[rows][name])
        if chosen and chosen[-1][1] == candidate:
            chosen.pop()
        chosen.append((rows, candidate))
    return [*chosen[:-1], (None, chosen[-1][1])]


def write(
    path: Path,
    block: Mapping[str, Sequence[tuple[int | None, str]]],
    cuda: Collection[str],
    measured: Mapping[str, Any],
) -> None:
    """Write a table atomically, with the versions and times of its measurement."""
    write_json(path, json.dumps({"block": block, "cuda": sorted(cuda), **measured}, indent=1) + "\n")
    _of_device.cache_clear()


def write_json(path: Path, text: str) -> None:
    """Write ``text`` next to its place and rename it, with the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(part, 0o644)  # mkstemp allows access only to the owner
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise

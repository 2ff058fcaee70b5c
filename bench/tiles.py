"""Products in bfloat16 and int8 that do nothing else: AMX tiles and ``vdpbf16ps``, where the CPU has them."""

import ctypes
import functools
import math
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import fma

SOURCE = Path(__file__).with_name("tile_peak.cpp")
ALONE = "bfloat16 tiles alone"
"""The candidate whose weights are streamed from L3, as those of a model are."""

STEPS = 16
"""Tiles along K: 512 elements of bfloat16, the width of the published model."""

WEIGHTS = 208
"""Panels of 512 x 32 weights: as many as a published block has, 6.8 MB."""

MOST_ROWS = 672
"""So many rows of 512 elements (688 KB) stay in L2."""


@dataclass(frozen=True)
class Unit:
    """What computes the products.

    Attributes:
        what: in messages.
        flags: for the compiler.
        cpu_flag: in /proc/cpuinfo.
        instruction: in the compiled code.
    """

    what: str
    flags: tuple[str, ...]
    cpu_flag: str
    instruction: str

    @property
    def is_amx(self) -> bool:
        return self.cpu_flag.startswith("amx")

    def build(self, folder: Path) -> Path:
        """Compile the functions of this unit; see :func:`bench.fma.build`."""
        return fma.build(SOURCE, self.flags, folder)

    @functools.cache  # noqa: B019 - there are three, and they stay
    def absent_reason(self) -> str | None:
        """None if it can be measured here, else why not."""
        if self.cpu_flag not in _cpu_flags():
            return f"this machine has no {self.what}"
        if reason := fma.absent_reason():
            return reason
        try:
            library = self._library()
        except subprocess.CalledProcessError as error:
            return f"the C++ compiler cannot build {self.what}: {error.stderr.strip().splitlines()[-1]}"
        if self.is_amx and not library.tiles_allowed():
            return f"the kernel does not let this process use {self.what} (arch_prctl; Linux 5.16 and later do)"
        return None

    @functools.cache  # noqa: B019
    def _library(self) -> ctypes.CDLL:
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(self.build(Path(folder))))

    def function(self, name: str, *arguments: Any) -> Callable[[int], float]:
        """A function that runs a number of iterations on the calling thread and returns their operations."""
        run = getattr(self._library(), name)
        run.restype = ctypes.c_double
        return lambda iterations: run(ctypes.c_long(iterations), *arguments)


BFLOAT16 = Unit("AMX bfloat16", ("-mamx-tile", "-mamx-bf16"), "amx_bf16", "tdpbf16ps")
INT8 = Unit("AMX int8", ("-mamx-tile", "-mamx-int8"), "amx_int8", "tdpbssd")
VECTORS = Unit("AVX512-BF16", ("-mavx512f", "-mavx512bf16"), "avx512_bf16", "vdpbf16ps")


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def absent_reason() -> str | None:
    return BFLOAT16.absent_reason()


def _from_memory(unit: Unit, rows: int, panels: int) -> Callable[[int], float]:
    """Products of ``rows`` rows with ``panels`` panels of weights; every call has memory of its own for its results."""
    blocks = max(1, math.ceil(rows / 32))
    a, b = (torch.zeros(count * STEPS * 2048, dtype=torch.int8) for count in (blocks, panels))
    sizes = [ctypes.c_long(count) for count in (blocks, panels, STEPS)]

    def run(iterations: int) -> float:
        c = torch.empty(4096, dtype=torch.int8)
        operands = [ctypes.c_void_p(one.data_ptr()) for one in (a, b)]
        return unit.function("tiles_from_memory", *operands, *sizes, ctypes.c_void_p(c.data_ptr()))(iterations)

    return run


def products(operations: float, rows: int) -> Callable[..., list[torch.Tensor]]:
    """A function that runs ``operations`` with tiles, ``rows`` rows at a time, on torch's number of threads.

    The weights come from L3, the rows from L2. Each piece of the work meets nearly all weights of a block once; how
    many exactly makes the sum of the pieces right.
    """
    rows = min(rows, MOST_ROWS)
    of_block = 2 * 32 * math.ceil(rows / 32) * 512 * 32 * WEIGHTS
    pieces = max(1, math.ceil(operations / of_block))
    panels = max(1, round(WEIGHTS * operations / (pieces * of_block)))
    return fma.in_pieces(functools.cache(lambda: _from_memory(BFLOAT16, rows, panels)), operations, pieces)


def _wanted() -> dict[str, tuple[Unit, Callable[[], Callable[[int], float]]]]:
    """By name, the unit and what makes the function to time."""
    return {
        "amx_bfloat16_registers": (BFLOAT16, lambda: BFLOAT16.function("tiles_in_registers")),
        "amx_bfloat16_cached": (BFLOAT16, lambda: _from_memory(BFLOAT16, 96, 8)),
        "amx_bfloat16_streamed_96_rows": (BFLOAT16, lambda: _from_memory(BFLOAT16, 96, WEIGHTS)),
        "amx_bfloat16_streamed_672_rows": (BFLOAT16, lambda: _from_memory(BFLOAT16, MOST_ROWS, WEIGHTS)),
        "amx_int8_registers": (INT8, lambda: INT8.function("tiles_in_registers")),
        "amx_int8_cached": (INT8, lambda: _from_memory(INT8, 96, 8)),
        "avx512_bfloat16_registers": (VECTORS, lambda: VECTORS.function("dot_products", _sink())),
    }


def ceilings(threads: int) -> dict[str, float]:
    """Operations per second of all threads together, as ``<name>_flops_per_s``, of what this CPU has.

    "registers": operands stay there. "cached": both come from L1 and L2, in a scheme of 2 x 2 tiles. "streamed": the
    weights of a published block come from L3 and meet so many rows.
    """
    present = {name: make for name, (unit, make) in _wanted().items() if unit.absent_reason() is None}
    return {f"{name}_flops_per_s": fma.best_rate(make(), threads) for name, make in present.items()}


def absent() -> dict[str, str]:
    """Why the other ceilings are missing, by name."""
    reasons = {name: unit.absent_reason() for name, (unit, _) in _wanted().items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _sink() -> Any:
    return ctypes.byref(ctypes.c_float())

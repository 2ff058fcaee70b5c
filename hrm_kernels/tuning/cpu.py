"""What is faster on a CPU, the ``cpu`` backend or plain PyTorch: measured for each op, dtype and size.

A table holds times of both. The shipped ones, in ``cpus/``, are for instruction sets; the user's, which ``python -m
hrm_kernels.tuning --device cpu`` writes, is for one machine. For each op and dtype the first table that has times
decides: the user's if it belongs to this machine, then the shipped ones of machines where PyTorch's instructions are as
far ahead of the library's as here, the nearest instruction set first. Without a table the ``cpu`` backend runs.
"""

import functools
import json
import math
import os
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hrm_kernels import instruction_sets, versions
from hrm_kernels.autodiff import traced_as_constant
from hrm_kernels.instruction_sets import DTYPES, SETS
from hrm_kernels.tuning.table import TuningError, write_json

FOLDER = Path(__file__).parent / "cpus"

FORMAT = 1
"""The version of tables; others are ignored."""

LEAD = 1.03
"""Plain PyTorch runs a call if the ``cpu`` backend takes more than this factor longer: above the noise of timings."""

NEAR = 2.0
"""A measurement is evidence for calls up to this factor wider or narrower; others stay on the ``cpu`` backend."""

SAME_KERNELS = {
    # ops without times of their own: an op with the same kernels
    "reasoning_module": "transformer_block",
    "recurrent_segment": "recurrent_cycles",
    "stablemax_cross_entropy_with_argmax": "stablemax_cross_entropy",
}

MEASURED = (
    "adam_atan2",
    "add_rms_norm",
    "conv_cycles",
    "conv_swiglu",
    "linear",
    "recurrent_cycles",
    "rope_attention",
    "sparse_sign_sgd",
    "stablemax_cross_entropy",
    "swiglu",
    "token_mixing",
    "transformer_block",
)
"""Ops that have times."""


class Times(NamedTuple):
    """The microseconds of one call on both backends.

    Attributes:
        op, dtype: names.
        direction: ``"forward"``, or ``"gradients"`` for forward and backward.
        width, rows: the size of the call, see :func:`size`.
        cpu, pytorch: medians.
    """

    op: str
    dtype: str
    direction: str
    width: int
    rows: int
    cpu: float
    pytorch: float

    @property
    def pytorch_is_faster(self) -> bool:
        return self.cpu > LEAD * self.pytorch


@dataclass(frozen=True)
class Machine:
    """What times depend on.

    Attributes:
        library, pytorch: instruction sets by dtype.
        processor: its model.
        torch, hrm: versions.
        threads: of each call.
    """

    library: Mapping[str, str | None]
    pytorch: Mapping[str, str]
    processor: str
    torch: str
    hrm: str
    threads: int

    @classmethod
    def here(cls) -> "Machine":
        return cls(
            {dtype: instruction_sets.of_library(dtype) for dtype in DTYPES},
            {dtype: instruction_sets.of_pytorch(dtype) for dtype in DTYPES},
            processor(),
            torch.__version__,
            versions.own(),
            torch.get_num_threads(),
        )

    def difference(self, other: "Machine") -> str | None:
        """None if times of ``other`` are valid here, else the first thing that differs."""
        for name, value in asdict(self).items():
            if getattr(other, name) != value:
                return f"{name} is {value!r} here and {getattr(other, name)!r} in the table"
        return None


@dataclass(frozen=True)
class Table:
    """Times of one machine.

    Attributes:
        machine: where they were measured.
        date: when.
        times: all of them.
        about: what else a reader has to know; "" for nothing.
    """

    machine: Machine
    date: str
    times: tuple[Times, ...]
    about: str = ""


Rows = tuple[tuple[int | None, bool], ...]
"""``(largest number of rows, whether PyTorch is faster)``, in ascending order; the last limit is None."""

Limits = tuple[tuple[int | None, Rows], ...]
"""``(largest width, rows)``, in ascending order; the last limit is None."""


class Size(NamedTuple):
    """The size of a call, as tables count it."""

    rows: int
    width: int


def size(op: str, arguments: Sequence[Any]) -> Size:
    """The size of a call: rows and width of the first tensor.

    But the width of ``linear`` is the side of a square with as many weights, that of attention the positions. Of an
    optimiser all parameters count as rows.
    """
    first = arguments[0]
    if op == "adam_atan2":
        return Size(sum(one.numel() for one in first.params), 1)
    if op == "sparse_sign_sgd":
        return Size(arguments[1].numel(), first.shape[-1])
    width = first.shape[-1]
    rows = first.numel() // width if width else 0
    if op == "linear":
        return Size(rows, round(arguments[1].numel() ** 0.5))
    return Size(rows, first.shape[1] if op == "rope_attention" else width)


def pytorch_is_faster(limits: Limits, op: str, arguments: Sequence[Any]) -> bool:
    """Whether plain PyTorch runs this call faster than the ``cpu`` backend, by the limits of :func:`crossovers`."""
    if len(limits) == 1 and len(limits[0][1]) == 1:  # torch.compile then has no need to know the size
        return limits[0][1][0][1]
    rows, width = size(op, arguments)
    for most_width, of_width in limits:
        if most_width is None or width <= most_width:
            for most_rows, is_faster in of_width:
                if most_rows is None or rows <= most_rows:
                    return is_faster
    return False


def reason(op: str, dtype: torch.dtype, arguments: Sequence[Any], gradients: bool) -> str:
    """For a call that plain PyTorch runs faster: the measurement that says so."""
    table, times = _times_of(op, _name(dtype))
    rows, width = size(op, arguments)
    times = sorted(one for one in times if one.direction == _direction(gradients))
    nearest = min(times, key=lambda one: (_ratio(one.width, width), _ratio(one.rows, rows)))
    factor = nearest.cpu / nearest.pytorch
    shown = f"{factor:.1f}" if factor >= 1.1 else f"{factor:.2f}"
    backward = " with gradients" if gradients else ""
    about = f" ({table.about})" if table.about else ""
    return (
        f"PyTorch is {shown} x faster here for {nearest.dtype} and {nearest.rows} rows{backward}; "
        f"measured {table.date} on {table.machine.processor}{about}"
    )


@traced_as_constant
def crossovers(op: str, dtype: torch.dtype) -> tuple[Limits, Limits] | None:
    """Where PyTorch is faster, forward and with gradients; None if nowhere."""
    try:
        return _crossovers[op, dtype]
    except KeyError:
        _, times = _times_of(op, _name(dtype))
        both = limits(times, "forward"), limits(times, "gradients")
        nowhere: Limits = ((None, ((None, False),)),)
        found = _crossovers[op, dtype] = None if both == (nowhere, nowhere) else both
        return found


_crossovers: dict[tuple[str, torch.dtype], tuple[Limits, Limits] | None] = {}  # by op and dtype


def limits(times: Iterable[Times], direction: str) -> Limits:
    """The limits of the classes of size: each call is like the nearest measurement."""
    by_width: dict[int, dict[int, bool]] = {}
    for one in times:
        if one.direction == direction:
            by_width.setdefault(one.width, {})[one.rows] = one.pytorch_is_faster
    nowhere: Rows = ((None, False),)
    classes: list[tuple[int | None, Rows]] = []
    widths = sorted(by_width)
    for index, width in enumerate(widths):
        before = widths[index - 1] if index else 0
        if before * NEAR < width / NEAR:
            classes.append((math.ceil(width / NEAR) - 1, nowhere))
        after = widths[index + 1] if index + 1 < len(widths) else None
        middle = None if after is None else math.isqrt(width * after)
        limit = int(width * NEAR) if middle is None else min(int(width * NEAR), middle)
        classes.append((limit, _rows(by_width[width])))
    return _merged([*classes, (None, nowhere)])


def _rows(is_faster: Mapping[int, bool]) -> Rows:
    rows = sorted(is_faster)
    middles = [math.isqrt(low * high) for low, high in zip(rows, rows[1:])]
    return _merged([(limit, is_faster[one]) for limit, one in zip([*middles, None], rows)])


def _merged(classes: Sequence[tuple[int | None, Any]]) -> tuple[tuple[int | None, Any], ...]:
    """Neighbours with the same value as one class."""
    merged: list[tuple[int | None, Any]] = []
    for limit, value in classes:
        if merged and merged[-1][1] == value:
            merged.pop()
        merged.append((limit, value))
    return tuple(merged)


def _times_of(op: str, dtype: str) -> tuple[Table, list[Times]]:
    """The first table with times of an op in ``dtype``, and these times; an empty list if there is none."""
    op = SAME_KERNELS.get(op, op)
    for table in _tables(dtype):
        times = [one for one in table.times if (one.op, one.dtype) == (op, dtype)]
        if times:
            return table, times
    return Table(Machine.here(), "", ()), []


def _tables(dtype: str) -> list[Table]:
    """The tables that decide about ``dtype``, the most fitting first."""
    library = instruction_sets.of_library(dtype) if dtype in DTYPES else None
    if library not in SETS:  # there is no library, or it emulates instructions, which only tests request
        return []
    user, shipped = _read_tables()
    here = SETS.index(library), SETS.index(instruction_sets.of_pytorch(dtype))

    def sets(table: Table) -> tuple[int, int]:
        return SETS.index(table.machine.library[dtype] or ""), SETS.index(table.machine.pytorch[dtype])

    # where PyTorch is further ahead, or less far, times say nothing about here
    fitting = [table for table in shipped if sets(table)[1] - sets(table)[0] == here[1] - here[0]]
    return [*([user] if user else []), *sorted(fitting, key=lambda table: abs(sets(table)[0] - here[0]))]


@functools.cache
def _read_tables() -> tuple[Table | None, list[Table]]:
    """The user's table, if it belongs to this machine, and the shipped ones; damaged ones are ignored."""
    user, ignored = user_table()
    damaged = [ignored.text] if ignored and ignored.is_damaged else []
    shipped = []
    for path in sorted(FOLDER.glob("*.json")):
        try:
            shipped.append(read(path))
        except TuningError as error:
            damaged.append(str(error))
    if damaged:
        warnings.warn(f"{'; '.join(damaged)}. Until then it is ignored", stacklevel=2)
    return user, shipped


class Ignored(NamedTuple):
    """Why the user's table is not used; ``is_damaged`` if that is a fault, not only another machine."""

    text: str
    is_damaged: bool


def user_table() -> tuple[Table | None, Ignored | None]:
    """The table of this machine, or why the one on disk is not used. Both are None if there is none."""
    path = user_path()
    if not path.exists():
        return None, None
    try:
        table = read(path)
    except TuningError as error:
        return None, Ignored(str(error), True)
    difference = Machine.here().difference(table.machine)
    if difference is not None:
        again = "measure again with python -m hrm_kernels.tuning --device cpu"
        return None, Ignored(f"{path} belongs to another machine or version ({difference}); {again}", False)
    return table, None


def user_path() -> Path:
    """Where the table of this machine is: in ``XDG_CACHE_HOME``, or ``~/.cache``."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    # the standard says to ignore relative folders
    base = Path(folder) if os.path.isabs(folder) else Path("~/.cache").expanduser()
    return base / "hrm_kernels" / "cpu.json"


def shipped_path(machine: Machine) -> Path:
    """The file of a machine's instruction sets: ``avx2.json``, ``avx512-pytorch-amx.json``."""
    library = list(dict.fromkeys(machine.library[dtype] or "none" for dtype in DTYPES))
    pytorch = list(dict.fromkeys(machine.pytorch[dtype] for dtype in DTYPES))
    parts = library if library == pytorch else [*library, "pytorch", *pytorch[-1:]]
    return FOLDER / f"{'-'.join(parts)}.json"


def read(path: Path) -> Table:
    """Read and check a table.

    Raises:
        TuningError: the table is damaged, or of another format.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}, expected {FORMAT}")
        machine = Machine(**content["machine"])
        for name in ("library", "pytorch"):
            sets = getattr(machine, name)
            if set(sets) != set(DTYPES) or not set(sets.values()) <= set(SETS):
                raise ValueError(f"{name} is {sets!r}, expected one of {', '.join(SETS)} for {' and '.join(DTYPES)}")
        times = tuple(_checked(row) for row in content["times"])
        return Table(machine, _text(content["date"]), times, _text(content.get("about", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise TuningError(
            f"the tuning table {path} is damaged ({what}); remove it, or measure again with "
            "python -m hrm_kernels.tuning --device cpu"
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"got {value!r}, expected a text")
    return value


def _checked(row: Any) -> Times:
    times = Times(*row)
    if times.op not in MEASURED:
        raise ValueError(f"unknown op {times.op!r}")
    if times.dtype not in DTYPES:
        raise ValueError(f"unknown dtype {times.dtype!r}")
    if times.direction not in ("forward", "gradients"):
        raise ValueError(f"direction is {times.direction!r}, expected forward or gradients")
    for name in ("width", "rows"):
        value = getattr(times, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer from 1")
    for name in ("cpu", "pytorch"):
        value = getattr(times, name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}, expected microseconds")
    return times


def write(path: Path, table: Table) -> None:
    """Write a table atomically, one measurement per line."""
    head = {"format": FORMAT, "date": table.date, "about": table.about, "machine": asdict(table.machine)}
    text = json.dumps(head, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(row)}" for row in table.times)
    write_json(path, f'{text},\n "times": [\n{lines}\n ]\n}}\n')
    forget()


def forget() -> None:
    """Read the tables again at the next call."""
    _read_tables.cache_clear()
    _crossovers.clear()


def processor() -> str:
    """The model of this CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _direction(gradients: bool) -> str:
    return "gradients" if gradients else "forward"


def _ratio(one: int, other: int) -> float:
    return abs(math.log(max(one, 1) / max(other, 1)))

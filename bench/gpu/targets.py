"""Targets for an H200 in bfloat16, and how a run compares with them.

The sizes are S = 82 and batch 384 unless a target says otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Rows = Mapping[tuple[str, str], Mapping[str, Any]]
"""Measurements by workload and backend."""

Value = Callable[[Rows, Mapping[str, float]], float]
"""Computes a value from measurements and ceilings; raises KeyError if something was not measured."""


@dataclass(frozen=True)
class Target:
    """One value that a run should reach: ``met`` judges it, ``form`` shows it."""

    what: str
    expected: str
    value: Value
    met: Callable[[float], bool]
    form: str


def _seconds(rows: Rows, workload: str, backend: str = "triton") -> float:
    return rows[workload, backend]["seconds"]


def _rate(rows: Rows, workload: str) -> float:
    return rows[workload, "triton"]["operations"] / _seconds(rows, workload)


def _share_of_copy(workload: str) -> Value:
    return lambda rows, ceilings: (
        rows[workload, "triton"]["bytes"] / _seconds(rows, workload) / ceilings["copy_bytes_per_s"]
    )


def _times_faster_than(workload: str, backend: str) -> Value:
    return lambda rows, ceilings: _seconds(rows, workload, backend) / _seconds(rows, workload)


def _launches_of_a_pass(rows: Rows, ceilings: Mapping[str, float]) -> float:
    """Kernels, copies and fills of a segment's six module passes: four in one call, two in separate calls."""
    cycles, module = (rows[f"{op} batch 1", "cuda"]["launches"] for op in ("recurrent_cycles", "reasoning_module"))
    if None in (cycles, module):
        raise KeyError("launches")  # the profiler saw none
    return (cycles + 2 * module) / 6


BLOCK = "transformer_block"
TARGETS = [
    Target(
        "add_rms_norm, of the copy bandwidth", ">= 80 %", _share_of_copy("add_rms_norm"), lambda x: x >= 0.8, "{:.0%}"
    ),
    Target("swiglu, of the copy bandwidth", ">= 80 %", _share_of_copy("swiglu"), lambda x: x >= 0.8, "{:.0%}"),
    Target(
        "short attention, forward",
        "<= 50 µs",
        lambda rows, ceilings: 1e6 * _seconds(rows, "rope_attention"),
        lambda x: x <= 50,
        "{:.1f} µs",
    ),
    Target(
        "block pass without gradient",
        "<= 0.40 ms",
        lambda rows, ceilings: 1e3 * _seconds(rows, BLOCK),
        lambda x: x <= 0.4,
        "{:.3f} ms",
    ),
    Target(
        "block pass, of the matrix ceiling",
        ">= 65 %",
        lambda rows, ceilings: _rate(rows, BLOCK) / ceilings["matmul_flops_per_s"],
        lambda x: x >= 0.65,
        "{:.0%}",
    ),
    Target(
        "block pass, faster than eager",
        ">= 1.5 x",
        _times_faster_than(BLOCK, "reference"),
        lambda x: x >= 1.5,
        "{:.2f} x",
    ),
    Target(
        "block pass, faster than torch.compile",
        ">= 1.2 x",
        _times_faster_than(BLOCK, "torch.compile"),
        lambda x: x >= 1.2,
        "{:.2f} x",
    ),
    Target(
        "training step",
        "<= 30 ms",
        lambda rows, ceilings: 1e3 * _seconds(rows, "training step, one graph"),
        lambda x: x <= 30,
        "{:.1f} ms",
    ),
    Target(
        "attention forward at S = 901",
        ">= 350 TFLOP/s",
        lambda rows, ceilings: _rate(rows, "rope_attention S=901") / 1e12,
        lambda x: x >= 350,
        "{:.0f} TFLOP/s",
    ),
    Target(
        "one Sudoku answer, 16 segments, cuda",
        "<= 4 ms",
        lambda rows, ceilings: 1e3 * _seconds(rows, "Sudoku answer", "cuda"),
        lambda x: x <= 4,
        "{:.2f} ms",
    ),
    Target("launches of a module pass, batch 1, cuda", "<= 1", _launches_of_a_pass, lambda x: x <= 1, "{:.2f}"),
]


def compare(target: Target, rows: Rows, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """The measured value beside the target; ``met`` is None if it was not measured."""
    row = {"what": target.what, "expected": target.expected}
    try:
        value = target.value(rows, ceilings)
    except KeyError:
        return row | {"measured": "not measured", "met": None}
    return row | {"measured": target.form.format(value), "value": value, "met": target.met(value)}

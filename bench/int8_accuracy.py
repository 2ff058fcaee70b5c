"""``python -m bench.int8_accuracy``: what 8-bit products in the updates without gradients do to the shipped models.

The products are those of :mod:`hrm_kernels.ops.transformer_block.eight_bit`, in plain PyTorch. In int8, rows of
activations and rows of weights are scaled to [-127, 127] and rounded, their integer products are summed exactly, and
the sums are scaled back to float32. In FP8 (e4m3, as the matrix units of a GPU take it) they are scaled to
[-448, 448], and the products are summed in float32. Attention, norms and SwiGLU stay in float32, and so do the last
update of z_L and the last update of z_H of each segment, which carry gradients in training.

Each variant solves the held-out puzzles of the model's card, next to float32 in plain PyTorch. The tables show the
share of puzzles solved, how many puzzles only one of the two solves, how likely so unequal numbers are if both solve
equally well (McNemar's exact test), and the cosine between the two states after each segment. bfloat16, and float32
summed in another order (the ``cpu`` backend), show what other rounding does.
"""

import argparse
import contextlib
import json
import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F

import hrm
from hrm import models
from hrm.data.batches import evaluation_batches
from hrm.data.format import open_dataset
from hrm.fused import Level, States
from hrm.inference.halting import parse_halting
from hrm.inference.segments import segments
from hrm.model import HRM, Batch, HRMInner
from hrm_kernels.backends import available_backends, use_backend
from hrm_kernels.nn import MixingModule, PostNormBlock, SwiGLU
from hrm_kernels.ops.add_rms_norm.reference import add_rms_norm
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.rope_attention.reference import rope_attention
from hrm_kernels.ops.swiglu.reference import swiglu
from hrm_kernels.ops.transformer_block import eight_bit

BATCH = 125
MIXERS, MLP = "qkv, o, token mixing", "gate_up, down"
ALL = (MIXERS, MLP)


@dataclass(frozen=True)
class Variant:
    """One way to compute a segment.

    Attributes:
        name: for the tables.
        forward_dtype: of the model.
        backend: of the updates that are not quantised.
        products: which products of a block have 8 bits: some of :data:`ALL`.
        states: the states whose updates are quantised.
        eight_bits: "int8" or "fp8".
    """

    name: str
    forward_dtype: str = "float32"
    backend: str = "reference"
    products: tuple[str, ...] = ()
    states: str = "HL"
    eight_bits: str = "int8"


FLOAT32 = Variant("float32")
VARIANTS = (
    Variant("float32, other order", backend="cpu"),
    Variant("bfloat16", forward_dtype="bfloat16"),
    Variant("int8", products=ALL),
    Variant("int8, MLP only", products=(MLP,)),
    Variant("int8, z_L only", products=ALL, states="L"),
    Variant("FP8", products=ALL, eight_bits="fp8"),
    Variant("FP8, MLP only", products=(MLP,), eight_bits="fp8"),
)


def product(x: torch.Tensor, weight: torch.Tensor, which: str, variant: Variant) -> torch.Tensor:
    """A product of a block, in 8 bits where the variant has ``which`` so."""
    if which not in variant.products:
        return F.linear(x, weight)
    return eight_bit.product(x, weight, variant.eight_bits)


def mlp(x: torch.Tensor, weights: SwiGLU, eps: float, which: str, variant: Variant) -> torch.Tensor:
    inner = swiglu(product(x, weights.gate_up_proj.weight, which, variant))
    return add_rms_norm(x, product(inner, weights.down_proj.weight, which, variant), eps)


def update(inner: HRMInner, level: Level, z: torch.Tensor, injection: torch.Tensor, variant: Variant) -> torch.Tensor:
    """``level(z + injection)`` with the products of ``variant`` in 8 bits."""
    x = z + injection
    for block in level.layers:
        if isinstance(level, MixingModule):
            x = mlp(x.transpose(1, 2), block.mlp_t, block.eps, MIXERS, variant).transpose(1, 2)  # type: ignore[arg-type]
        else:
            assert isinstance(block, PostNormBlock)
            attention = block.self_attn
            heads = Heads(inner.cos, inner.sin, attention.num_heads)
            attended = rope_attention(product(x, attention.qkv_proj.weight, MIXERS, variant), heads)
            x = add_rms_norm(x, product(attended, attention.o_proj.weight, MIXERS, variant), block.eps)
        x = mlp(x, block.mlp, block.eps, MLP, variant)  # type: ignore[arg-type]
    return x


def segment(inner: HRMInner, variant: Variant, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor) -> States:
    """:meth:`hrm.model.HRMInner.loops`, with all but the last update of each state as in ``variant``."""
    config, (H, L) = inner.config, inner.levels
    for H_cycle in range(config.H_cycles):
        is_last = H_cycle == config.H_cycles - 1
        for L_cycle in range(config.L_cycles):
            if "L" in variant.states and not (is_last and L_cycle == config.L_cycles - 1):
                z_L = update(inner, L, z_L, z_H + x, variant)
            else:
                z_L = inner.update(L, z_L, z_H + x)
        if "H" in variant.states and not is_last:
            z_H = update(inner, H, z_H, z_L, variant)
        else:
            z_H = inner.update(H, z_H, z_L)
    return z_H, z_L


@contextlib.contextmanager
def computed_as(model: HRM, variant: Variant) -> Iterator[None]:
    """Let ``model`` compute its segments as in ``variant``."""
    if variant.products:
        # the third argument after z_H, z_L and x is a damping, which no shipped model has
        model.inner.segment = lambda *inputs: segment(model.inner, variant, *inputs[:3])  # type: ignore[method-assign]
    try:
        with use_backend(variant.backend):
            yield
    finally:
        vars(model.inner).pop("segment", None)


@dataclass
class Solved:
    """A batch after all segments.

    Attributes:
        exact: by rule of halting, ``[B]`` bool: the answer is right.
        steps: by rule of halting, ``[B]``.
        states: ``(z_H, z_L)`` after each segment.
    """

    exact: dict[str, torch.Tensor]
    steps: dict[str, torch.Tensor]
    states: list[States]


def solve(model: HRM, variant: Variant, batch: Batch, margins: dict[str, float]) -> Solved:
    """All segments of a batch; ``margins``: what q_halt - q_continue has to exceed, by rule of halting."""
    count = model.config.halt_max_steps
    solved = Solved({}, {name: torch.zeros(len(batch["inputs"])) for name in margins}, [])
    running = {name: torch.ones(len(batch["inputs"]), dtype=torch.bool) for name in margins}
    answers = {name: torch.zeros_like(batch["labels"]) for name in margins}
    with computed_as(model, variant):
        for one in segments(model, batch, count):
            margin = one.outputs["q_halt_logits"] - one.outputs["q_continue_logits"]
            for name, least in margins.items():
                halts = running[name] & ((margin > least) | (one.step == count))
                answers[name] = torch.where(halts[:, None], one.tokens, answers[name])
                solved.steps[name][halts] = one.step
                running[name] &= ~halts
            solved.states.append((one.carry.z_H.float(), one.carry.z_L.float()))
    solved.exact = {name: (answer == batch["labels"]).all(-1) for name, answer in answers.items()}
    return solved


def mcnemar(plus: int, minus: int) -> float:
    """The probability of a difference at least this large if each puzzle that one of two solves is a fair coin's throw.

    Source: McNemar, Psychometrika 12 (1947), in its exact form, two-sided.
    """
    count = plus + minus
    tail = sum(math.comb(count, few) for few in range(min(plus, minus) + 1))
    return min(1.0, 2 * tail / 2**count)


@dataclass
class Row:
    """A variant on one set of puzzles.

    Attributes:
        exact_accuracy: share of puzzles solved, by rule of halting.
        steps: mean number of segments, by rule of halting.
        only_this, only_float32: number of puzzles that only this variant, or only float32, solves.
        p: of :func:`mcnemar` for these two numbers.
        cosine_H, cosine_L: mean cosine with the states of float32, after each segment.
        least_cosine_H: the least of any puzzle, after each segment.
    """

    model: str
    puzzles: str
    data: str
    count: int
    variant: str
    exact_accuracy: dict[str, float]
    steps: dict[str, float]
    only_this: dict[str, int]
    only_float32: dict[str, int]
    p: dict[str, float]
    cosine_H: list[float]
    cosine_L: list[float]
    least_cosine_H: list[float]


def cosines(states: list[States], exact: list[States], which: int) -> torch.Tensor:
    """``[segments, B]``"""
    return torch.stack(
        [
            F.cosine_similarity(one[which].flatten(1), other[which].flatten(1), dim=1)
            for one, other in zip(states, exact, strict=True)
        ]
    )


def measure(name: str, accuracy: models.Accuracy, folder: Path, count: int | None, wanted: list[Variant]) -> list[Row]:
    """These variants on one set of puzzles."""
    margins = {"fixed": float("inf"), "q": 0.0, "calibrated": parse_halting("calibrated", name).threshold}  # type: ignore[attr-defined]
    variants = [FLOAT32, *(v for v in wanted if available_backends()[v.backend] is None)]
    loaded = {v: hrm.load(name, forward_dtype=v.forward_dtype) for v in variants}
    solved: dict[Variant, list[Solved]] = {variant: [] for variant in variants}
    similar: dict[Variant, list[tuple[torch.Tensor, torch.Tensor]]] = {variant: [] for variant in variants}
    dataset = open_dataset(folder, "test")
    for numbers, batch in evaluation_batches(dataset, BATCH, 0, 1, count):
        batch = {key: values[: len(numbers)] for key, values in batch.items()}
        exact = solve(loaded[FLOAT32], FLOAT32, batch, margins)
        for variant in variants:
            one = exact if variant is FLOAT32 else solve(loaded[variant], variant, batch, margins)
            similar[variant].append((cosines(one.states, exact.states, 0), cosines(one.states, exact.states, 1)))
            solved[variant].append(Solved(one.exact, one.steps, []))
        print(f"{name}, {accuracy.puzzles}: {int(numbers[-1]) + 1}", file=sys.stderr, flush=True)

    def joined(variant: Variant, rule: str) -> torch.Tensor:
        return torch.cat([one.exact[rule] for one in solved[variant]])

    rows = []
    for variant in variants:
        pairs = {rule: (joined(variant, rule), joined(FLOAT32, rule)) for rule in margins}
        plus = {rule: int((this & ~other).sum()) for rule, (this, other) in pairs.items()}
        minus = {rule: int((other & ~this).sum()) for rule, (this, other) in pairs.items()}
        H, L = (torch.cat(parts, 1) for parts in zip(*similar[variant]))
        rows.append(
            Row(
                name,
                accuracy.puzzles,
                accuracy.data,
                H.shape[1],
                variant.name,
                {rule: this.float().mean().item() for rule, (this, _) in pairs.items()},
                {rule: torch.cat([one.steps[rule] for one in solved[variant]]).mean().item() for rule in margins},
                plus,
                minus,
                {rule: mcnemar(plus[rule], minus[rule]) for rule in margins},
                H.mean(1).tolist(),
                L.mean(1).tolist(),
                H.amin(1).tolist(),
            )
        )
    return rows


def tables(rows: list[Row]) -> str:
    """Markdown: accuracy, then cosines."""
    shown = {"fixed": "all segments", "q": "halting by Q", "calibrated": "halting as calibrated"}
    lines = [
        "| model | puzzles | variant | " + " | ".join(f"{title}: solved | +, -, p" for title in shown.values()) + " |"
    ]
    lines += ["| --- " * (3 + 2 * len(shown)) + "|"]
    for row in rows:
        cells = [
            f"{row.exact_accuracy[r]:.1%} | +{row.only_this[r]}, -{row.only_float32[r]}, {row.p[r]:.2f}" for r in shown
        ]
        lines.append(f"| {row.model} | {row.puzzles} ({row.count}) | {row.variant} | " + " | ".join(cells) + " |")
    lines += ["", "Mean segments when halting early, and cosine with the states of float32:", ""]
    lines += ["| model | puzzles | variant | segments by Q, calibrated | cosine of z_H after segments | least | z_L |"]
    lines += ["| --- " * 7 + "|"]
    for row in rows:
        if row.variant != FLOAT32.name:
            places = sorted({0, 1, 3, 7, len(row.cosine_H) - 1} & set(range(len(row.cosine_H))))
            columns = [
                ", ".join(f"{place + 1}: {values[place]:.5f}" for place in places)
                for values in (row.cosine_H, row.least_cosine_H, row.cosine_L)
            ]
            steps = f"{row.steps['q']:.3f}, {row.steps['calibrated']:.3f}"
            lines.append(f"| {row.model} | {row.puzzles} | {row.variant} | {steps} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Generate the puzzles, measure, write ``int8-accuracy.json`` and ``int8-accuracy.md``."""
    parser = argparse.ArgumentParser(
        "python -m bench.int8_accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--data", type=Path, help="folder that keeps the generated puzzles")
    parser.add_argument("--models", nargs="*", default=models.names(), help="shipped models")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="*", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument("--count", type=int, help="only the first puzzles of each set")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    variants = [variant for variant in VARIANTS if variant.name in arguments.variants]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        kept = arguments.data or Path(temporary)
        cards = [card for card in models.cards() if card.name in arguments.models]
        sets = [(number, card, accuracy) for card in cards for number, accuracy in enumerate(card.accuracy)]
        for number, card, accuracy in sorted(sets, key=lambda one: one[0]):
            folder = kept / f"{card.name}-{number}"
            if not folder.exists():
                subprocess.run([sys.executable, "-m", *accuracy.data.split(), "--out", str(folder)], check=True)
            rows += measure(card.name, accuracy, folder, arguments.count, variants)
            write(rows, arguments.out)
    print(tables(rows))


def write(rows: list[Row], folder: Path) -> None:
    """Write what has been measured so far: a run takes an hour on one core."""
    made_with = {"torch": torch.__version__, "machine": platform.machine(), "date": date.today().isoformat()}
    results = {"made_with": made_with, "rows": [asdict(row) for row in rows]}
    (folder / "int8-accuracy.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "int8-accuracy.md").write_text(tables(rows))


if __name__ == "__main__":
    main()

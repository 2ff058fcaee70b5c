"""``hrm scale``: accuracy against compute."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.options import (
    Augment,
    BatchSize,
    Damping,
    Data,
    Device,
    Force,
    Halt,
    Json,
    MaxExamples,
    Model,
    Noise,
    PuzzleEmb,
    PuzzleEmbOption,
    Seed,
    Select,
    Split,
    StartNoise,
)
from hrm.cli.processes import say_checkpoint
from hrm.errors import InputError
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.selection import DEFAULT_ORDER, parse_order
from hrm.progress import progress_bar


def scale(
    model: Model,
    data: Data,
    segments: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Numbers of segments (default: 1, 2, 4, ... up to the number in training).",
        ),
    ] = None,
    trajectories: Annotated[str, typer.Option(metavar="K,K,...", help="Numbers of attempts at each puzzle.")] = "1",
    noise: Noise = None,
    start_noise: StartNoise = 0.0,
    augment: Augment = False,
    select: Select = DEFAULT_ORDER,
    seed: Seed = 0,
    damping: Damping = None,
    split: Split = "test",
    halt: Halt = "fixed",
    max_examples: MaxExamples = None,
    batch_size: BatchSize = 64,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder for scaling.json, scaling.md and scaling.png.")
    ] = None,
    force: Force = False,
    puzzle_emb: PuzzleEmbOption = PuzzleEmb.strict,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure accuracy against compute: more segments, or several attempts at each puzzle, without retraining.

    Every combination of segments and trajectories is measured, with every rule that chooses among the answers of a
    puzzle, and with a perfect choice.
    """
    parse_order(select)
    AdaptiveDamping.of(damping)
    from hrm import api

    with progress_bar() as progress:
        scaling = api.scale(
            model,
            data,
            segments=None if segments is None else _numbers("--segments", segments),
            trajectories=_numbers("--trajectories", trajectories),
            noise=noise,
            start_noise=start_noise,
            augment=augment,
            select=select,
            seed=seed,
            split=split,
            halt=halt,
            damping=damping,
            max_examples=max_examples,
            batch_size=batch_size,
            out=out,
            force=force,
            puzzle_emb=puzzle_emb.value,
            device=device,
            progress=progress,
        )
    say_checkpoint(model)
    if as_json:
        about = {"checkpoint": model, "data": str(data), "split": split, "halt": halt, "damping": damping or "none"}
        print(json.dumps(scaling.as_dict(**about)))
    else:
        print(scaling)


def _numbers(option: str, text: str) -> list[int]:
    """Read ``1,4,16``.

    Raises:
        InputError: a part is not an integer, or is below 1.
    """
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option}: got {text!r}, expected integers separated by commas, such as 1,4,16") from None
    if min(values) < 1:
        raise InputError(f"{option}: got {min(values)}, expected 1 or more")
    return values

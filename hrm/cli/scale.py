"""``hrm scale``: accuracy against compute."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.options import (
    BatchSize,
    Data,
    Device,
    Force,
    Halt,
    Json,
    MaxExamples,
    Model,
    PuzzleEmb,
    PuzzleEmbOption,
    Seed,
    Split,
)
from hrm.cli.processes import say_checkpoint
from hrm.errors import InputError
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
    rollouts: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of attempts at each puzzle.")] = "1",
    no_augment: Annotated[
        bool,
        typer.Option("--no-augment", help="Do not change the puzzle by symmetries in the rollouts after the first."),
    ] = False,
    noise: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="X",
            help="Standard deviation of noise on the initial states in the rollouts after the first.",
        ),
    ] = 0.0,
    seed: Seed = 0,
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

    Every combination of segments and rollouts is measured. The answers of the rollouts of a puzzle vote; answers that
    are seen to solve the puzzle come first.
    """
    from hrm import api

    with progress_bar() as progress:
        scaling = api.scale(
            model,
            data,
            segments=None if segments is None else _numbers("--segments", segments),
            rollouts=_numbers("--rollouts", rollouts),
            augment=not no_augment,
            noise=noise,
            seed=seed,
            split=split,
            halt=halt,
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
        about = {"checkpoint": model, "data": str(data), "split": split, "halt": halt}
        print(json.dumps(scaling.as_dict(**about, augment=not no_augment, noise=noise, seed=seed)))
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

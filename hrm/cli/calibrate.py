"""``hrm calibrate``: find the threshold at which a model halts."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.options import BatchSize, Data, Device, MaxExamples, MaxSteps, Model, PuzzleEmb, PuzzleEmbOption, Split
from hrm.cli.processes import say_checkpoint
from hrm.progress import progress_bar


def calibrate(
    model: Model,
    data: Data,
    rule: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="What has the threshold: margin (q_halt - q_continue), residual (the change of the states), or "
            "'q|residual' (the same, beside halting by Q).",
        ),
    ] = "margin",
    loss: Annotated[
        float, typer.Option(metavar="X", help="Exact accuracy that may be lost, such as 0.01 for one puzzle in 100.")
    ] = 0.0,
    split: Split = "test",
    max_steps: MaxSteps = None,
    max_examples: MaxExamples = None,
    batch_size: BatchSize = 64,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder for the threshold (default: beside the checkpoint; needed for shipped models and models "
            "from the hub).",
        ),
    ] = None,
    puzzle_emb: PuzzleEmbOption = PuzzleEmb.strict,
    device: Device = "auto",
) -> None:
    """Find the halting threshold with the fewest segments that loses no accuracy.

    It is stored beside the checkpoint (halting.json, halting.md, halting.png), where --halt calibrated finds it. Use
    puzzles that the model was not trained on.
    """
    from hrm import api
    from hrm.inference.halting import CALIBRATION_FILE, calibration_folder

    with progress_bar() as progress:
        calibration = api.calibrate(
            model,
            data,
            rule=rule,
            loss=loss,
            split=split,
            max_steps=max_steps,
            max_examples=max_examples,
            batch_size=batch_size,
            out=out,
            puzzle_emb=puzzle_emb.value,
            device=device,
            progress=progress,
        )
    say_checkpoint(model)
    print(calibration.markdown())
    beside, threshold = calibration_folder(model), calibration.chosen.threshold
    folder = beside if out is None else out.expanduser()
    halt = "calibrated" if folder.resolve() == beside.resolve() else shlex.quote(calibration.halt)
    print(f"threshold {threshold:.6g} in {folder / CALIBRATION_FILE}; use it with --halt {halt}")

"""``hrm calibrate``: how sure a model has to be before it halts."""

from typing import Annotated

import typer

from hrm.cli import app
from hrm.cli.settings import PuzzleEmb, folder, load_for, read_settings
from hrm.errors import InputError
from hrm.files import require_writable
from hrm.progress import progress_bar


@app.command()
def calibrate(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Model folder, run, checkpoint or hub name.")],
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="data=DIR [loss=0.0] [out=DIR]",
            help="The data folder; the part of exact accuracy that may be lost; a folder to write to, "
            "instead of beside the checkpoint (needed for models of the package and of the hub).",
        ),
    ],
    split: Annotated[str, typer.Option(help="Which split of the data: puzzles not trained on.")] = "test",
    max_steps: Annotated[int | None, typer.Option(help="The most segments; default: as in training.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Only so many examples, from the start.")] = None,
    batch_size: Annotated[int, typer.Option(help="Puzzles run side by side.")] = 64,
    puzzle_emb: PuzzleEmb = "strict",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Find the threshold on q_halt - q_continue with the fewest segments for a wanted loss of accuracy.

    Draws accuracy against mean segments, and stores the threshold beside the checkpoint (halting.json, halting.md,
    halting.png): hrm eval and hrm solve take it with --halt calibrated, and one stored elsewhere with --halt margin:X.
    """
    from hrm import models
    from hrm.data.format import open_dataset
    from hrm.inference.calibrate import FILE, folder_of
    from hrm.inference.calibrate import calibrate as find
    from hrm.training.distributed import joined

    settings = read_settings("calibrate", values, loss=float, out=folder)
    beside = folder_of(checkpoint)
    out = settings.get("out", beside)
    if "out" not in settings:
        if out == models.folder(checkpoint):
            raise InputError(f"{checkpoint} comes with the package, which keeps its own {FILE}; give out=DIR")
        if not out.exists() and "/" in checkpoint:
            raise InputError(f"{checkpoint} is no folder here to write {FILE} to; give out=DIR")
    require_writable(out)
    with joined(device) as world, progress_bar() as progress:
        if world.size > 1:
            raise InputError("hrm calibrate runs in one process; start it without torchrun")
        dataset = open_dataset(settings["data"], split)
        model = load_for(dataset, checkpoint, world.device, puzzle_emb)
        found = find(
            model,
            dataset,
            loss=settings.get("loss", 0.0),
            max_steps=max_steps,
            max_examples=max_examples,
            slots=batch_size,
            progress=progress,
        )
    found.save(out, f"{settings['data']} ({split})")
    print(found.markdown())
    threshold = found.chosen.threshold
    halt = "calibrated" if out.resolve() == beside.resolve() else f"margin:{threshold}"
    print(f"threshold {threshold:.6g} in {out / FILE}; use it with --halt {halt}")

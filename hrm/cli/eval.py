"""``hrm eval``: measure a checkpoint on a data folder."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.cli import app
from hrm.cli.settings import PuzzleEmb, load_for, numbers, read_settings, require_free, seed, yes_or_no
from hrm.errors import InputError
from hrm.progress import Progress, progress_bar

if TYPE_CHECKING:
    from hrm.data.format import PuzzleDataset
    from hrm.inference.halting import Halting
    from hrm.inference.metrics import Metrics
    from hrm.model import HRM


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Model folder, run, checkpoint or hub name.")],
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="data=DIR [halt=q] [scale=segments:8,16 rollouts=1,4]",
            help="The data folder; when puzzles halt (as --halt); for accuracy against compute numbers of segments and "
            "of rollouts, and with these augment=false, noise=0.5 (of the initial states), seed=0.",
        ),
    ],
    split: Annotated[str, typer.Option(help="Which split of it.")] = "test",
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Puzzles run side by side, of all processes together; default: 256, and 64 where they halt early, "
            "since the last of them run in a batch that is no longer full."
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Segments for each puzzle; default: as in training.")] = None,
    halt: Annotated[
        str | None,
        typer.Option(
            help="fixed: all segments for every puzzle, as published; or stop each by q, stable:K, margin:X or "
            "calibrated (see hrm solve --help). Default: fixed."
        ),
    ] = None,
    max_examples: Annotated[int | None, typer.Option(help="Only so many examples, from the start.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for predictions.npz, metrics.json, submission.json; or scaling.*.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace these files where they exist.")] = False,
    puzzle_emb: PuzzleEmb = "strict",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Evaluate CKPT on data=DIR as published: all segments for every puzzle.

    Prints exact and token accuracy, halting accuracy, and what halting by Q would have saved and cost. ARC data are
    voted over their augmentations (pass@K). Runs on several GPUs under torchrun. With scale= or rollouts= it measures
    each combination instead: several tries at a puzzle (augmented, or from other initial states) vote, and answers that
    are seen to solve it come first.
    """
    parsers = {"scale": _segments, "rollouts": numbers, "augment": yes_or_no, "noise": float, "seed": seed, "halt": str}
    settings = read_settings("eval", values, **parsers)  # type: ignore[arg-type]
    if "halt" in settings and halt is not None:
        raise InputError(f"hrm eval takes one rule of halting, got halt={settings['halt']} and --halt {halt}; give one")
    halt = settings.pop("halt", halt or "fixed")
    folder, scales = settings["data"], "scale" in settings or "rollouts" in settings
    if not scales and len(settings) > 1:
        raise InputError("hrm eval takes augment=, noise= and seed= for rollouts; give rollouts=1,4 (or scale=) too")
    if "scale" in settings and max_steps is not None:
        raise InputError(f"hrm eval takes its segments from scale= or --max-steps {max_steps}, got both; give one")
    if out is not None:
        files = ("predictions.npz", "metrics.json", "submission.json")
        require_free(out, ("scaling.json", "scaling.md", "scaling.png") if scales else files, force)
    from hrm.data.format import open_dataset
    from hrm.files import write_json
    from hrm.inference.calibrate import halting_of
    from hrm.inference.evaluate import evaluate as measure
    from hrm.training.distributed import joined

    halting = halting_of(checkpoint, halt)
    if batch_size is None:
        batch_size = 256 if halt == "fixed" else 64
    with joined(device) as world, progress_bar(shown=world.is_main) as progress:
        dataset = open_dataset(folder, split)
        model = load_for(dataset, checkpoint, world.device, puzzle_emb)
        if scales:
            if world.size > 1:
                raise InputError("hrm eval scale= runs in one process; start it without torchrun")
            settings["scale"] = settings.get("scale", [model.config.halt_max_steps if max_steps is None else max_steps])
            settings["max_examples"] = max_examples
            _scale(checkpoint, model, dataset, settings, halting, halt, batch_size, out, as_json, progress)
            return
        metrics = measure(
            model,
            dataset,
            batch_size=batch_size,
            max_steps=max_steps,
            halt=halting,
            max_examples=max_examples,
            out=out,
            progress=progress,
        )
        if not world.is_main:
            return
    plain = {name: None if math.isnan(value) else value for name, value in metrics.as_dict().items()}
    if out is not None:
        write_json(out / "metrics.json", plain)
    if as_json:
        print(json.dumps(plain))
    else:
        _print_table(f"{checkpoint} on {folder} ({split})", metrics)


def _scale(
    checkpoint: str,
    model: "HRM",
    dataset: "PuzzleDataset",
    settings: dict[str, Any],
    halting: "Halting",
    halt: str,
    slots: int,
    out: Path | None,
    as_json: bool,
    progress: Progress,
) -> None:
    """Measure, print and (with ``out``) write accuracy against compute."""
    from dataclasses import asdict

    from hrm.data import task_of
    from hrm.inference import scaling

    metadata = dataset.metadata
    task = task_of(metadata.vocab_size, metadata.seq_len, metadata.task)
    how: dict[str, Any] = {name: settings[name] for name in ("augment", "noise", "seed") if name in settings}
    cells = scaling.measure(
        model,
        task,
        dataset,
        segments=settings["scale"],
        rollouts=settings.get("rollouts", [1]),
        halt=halting,
        max_examples=settings["max_examples"],
        slots=slots,
        progress=progress,
        **how,
    )
    about: dict[str, Any] = {
        "checkpoint": checkpoint,
        "data": str(dataset.folder),
        "split": dataset.split,
        "halt": halt,
        **how,
    }
    if out is not None:
        scaling.save(cells, out, **about)
    print(json.dumps(about | {"cells": [asdict(one) for one in cells]}) if as_json else scaling.markdown(cells))


def _segments(text: str) -> list[int]:
    """The numbers of ``segments:8,16``."""
    name, _, values = text.partition(":")
    if name != "segments":
        raise ValueError("expected segments:8,16,32")
    return numbers(values)


def _print_table(title: str, metrics: "Metrics") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for row in metrics.table():
        table.add_row(*row)
    Console(markup=False, emoji=False).print(table)  # a path may have [/] in it

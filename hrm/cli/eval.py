"""``hrm eval``: measure a model on a data folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.cli.options import (
    Augment,
    Damping,
    Data,
    Device,
    Force,
    Halt,
    Json,
    MaxExamples,
    MaxSteps,
    Model,
    Noise,
    PuzzleEmb,
    PuzzleEmbOption,
    Seed,
    Select,
    Split,
    StartNoise,
    TrajectoryCount,
)
from hrm.cli.processes import is_main, say_checkpoint
from hrm.errors import InputError
from hrm.files import read_json
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.selection import DEFAULT_ORDER, parse_order
from hrm.progress import progress_bar

if TYPE_CHECKING:
    from hrm.inference.engine import Trajectories
    from hrm.inference.metrics import Metrics


def evaluate(
    model: Model,
    data: Data,
    split: Split = "test",
    halt: Halt = "fixed",
    max_steps: MaxSteps = None,
    max_examples: MaxExamples = None,
    trajectories: TrajectoryCount = 1,
    noise: Noise = None,
    start_noise: StartNoise = 0.0,
    augment: Augment = False,
    select: Select = DEFAULT_ORDER,
    seed: Seed = 0,
    damping: Damping = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Puzzles processed together (default: 256, or 64 if they halt early or have several trajectories).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder for predictions.npz, metrics.json and (ARC) submission.json."),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="ARC: also draw the tasks with their attempts, pictures/TASK.png in --out."),
    ] = False,
    force: Force = False,
    puzzle_emb: PuzzleEmbOption = PuzzleEmb.strict,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on labelled puzzles, by the published protocol: all segments for every puzzle.

    Prints exact and token accuracy, halting accuracy, and the accuracy and segments if puzzles halted by Q. On ARC
    data the answers to all variants of a task vote (pass@K). With --trajectories there is a line for each rule that
    chooses among the answers, and one for a perfect choice. Several GPUs: torchrun -m hrm eval ...
    """
    parse_order(select)
    AdaptiveDamping.of(damping)
    tasks = data.expanduser() / "test_puzzles.json"
    if pictures:
        _require_arc(tasks, out, split, max_examples)
    from hrm import api

    with progress_bar(shown=is_main()) as progress:
        metrics = api.evaluate(
            model,
            data,
            split=split,
            halt=halt,
            max_steps=max_steps,
            max_examples=max_examples,
            batch_size=batch_size,
            trajectories=_several(trajectories, noise, start_noise, augment, seed=seed, select=select),
            damping=damping,
            out=out,
            force=force,
            puzzle_emb=puzzle_emb.value,
            device=device,
            progress=progress,
        )
    if not is_main():
        return
    say_checkpoint(model)
    if pictures and out is not None:
        from hrm.inference.arc_pictures import draw_submission

        folder = out.expanduser()
        draw_submission(read_json(tasks), read_json(folder / "submission.json"), folder / "pictures")
    if as_json:
        print(json.dumps(metrics.json_values()))
    else:
        _print_table(f"{model} on {data.expanduser()} ({split})", metrics)


def _require_arc(tasks: Path, out: Path | None, split: str, max_examples: int | None) -> None:
    """Raises InputError if the evaluation would write no submission to draw."""
    if out is None:
        raise InputError("--pictures needs a folder to write to; add --out DIR")
    if split != "test" or not tasks.is_file():
        raise InputError(f"--pictures draws the test split of ARC data, and {tasks} does not exist or is not evaluated")
    if max_examples is not None:
        raise InputError("--pictures needs the votes of all examples; leave out --max-examples")


def _several(count: int, *how: Any, **more: Any) -> "int | Trajectories":
    """The settings of several trajectories; for one the number, which needs no torch."""
    if count == 1:
        return count
    from hrm.inference.engine import Trajectories

    return Trajectories(count, *how, **more)


def _print_table(title: str, metrics: "Metrics") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for row in metrics.table():
        table.add_row(*row)
    Console(markup=False, emoji=False).print(table)  # a path may have [/] in it

"""``hrm eval``: measure a checkpoint on a data folder."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from hrm.cli import app
from hrm.errors import InputError


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Model folder, run, checkpoint or hub name.")],
    values: Annotated[list[str], typer.Argument(metavar="data=DIR", help="The data folder.")],
    split: Annotated[str, typer.Option(help="Which split of it.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Puzzles run side by side, of all processes together.")] = 256,
    max_steps: Annotated[int | None, typer.Option(help="Segments for each puzzle; default: as in training.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Only so many examples, from the start.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions.npz, metrics.json, submission.json.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace these files where they exist.")] = False,
    puzzle_emb: Annotated[
        str, typer.Option(help="A puzzle embedding of another number of rows: strict, keep, mean or zero.")
    ] = "strict",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Evaluate CKPT on data=DIR as published: all segments for every puzzle.

    Prints exact and token accuracy, halting accuracy, and what halting by Q would have saved and cost. ARC data are
    voted over their augmentations (pass@K). Runs on several GPUs under torchrun.
    """
    folder = _data_folder(values)
    if puzzle_emb not in ("strict", "keep", "mean", "zero"):
        raise InputError(f"--puzzle-emb is {puzzle_emb!r}, expected strict, keep, mean or zero")
    if out is not None and not force:
        for name in ("predictions.npz", "metrics.json", "submission.json"):
            if (out / name).exists():
                raise InputError(f"{out / name} exists already; choose another --out, or pass --force to replace it")
    from hrm.data.format import open_dataset
    from hrm.files import write_json
    from hrm.inference.evaluate import evaluate as measure
    from hrm.training.distributed import joined
    from hrm.weights import load

    with joined(device) as world:
        dataset = open_dataset(folder, split)
        metadata = dataset.metadata
        model = load(
            checkpoint,
            world.device,
            puzzle_emb=puzzle_emb,  # type: ignore[arg-type]
            # Without a choice the checkpoint keeps its rows, and the evaluation says how they differ from the data's.
            num_puzzle_identifiers=None if puzzle_emb == "strict" else metadata.num_puzzle_identifiers,
            seq_len=metadata.seq_len,
        )
        metrics = measure(
            model,
            dataset,
            batch_size=batch_size,
            max_steps=max_steps,
            max_examples=max_examples,
            out=out,
            progress=not as_json,
        )
        if not world.is_main:
            return
    plain = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    if out is not None:
        write_json(out / "metrics.json", plain)
    if as_json:
        print(json.dumps(plain))
    else:
        _print_table(f"{checkpoint} on {folder} ({split})", metrics)


def _data_folder(values: list[str]) -> Path:
    for value in values:
        key, equals, _ = value.partition("=")
        if not equals or key != "data":
            raise InputError(
                f"hrm eval does not know {value!r}; expected data=DIR (the rest are options: hrm eval --help)"
            )
    if len(values) > 1:
        raise InputError(f"hrm eval takes one data folder, got {' '.join(values)}; give one data=DIR")
    name = values[0].removeprefix("data=")
    if not name:
        raise InputError("data= names no folder; expected data=DIR")
    return Path(name).expanduser()  # the shell leaves the ~ of data=~/x alone


_FORMATS = {
    "exact_accuracy": ("puzzles all right", "{:.2%}"),
    "accuracy": ("tokens right", "{:.2%}"),
    "lm_loss": ("token loss", "{:.4f}"),
    "q_halt_accuracy": ("right about being right", "{:.2%}"),
    "steps": ("segments", "{:.2f}"),
    "early_exact_accuracy": ("puzzles all right, halting by Q", "{:.2%}"),
    "early_steps": ("segments, halting by Q", "{:.2f}"),
    "count": ("puzzles with labels", "{:.0f}"),
    "puzzles_per_second": ("puzzles per second", "{:.1f}"),
}


def _print_table(title: str, metrics: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in metrics.items():
        label, style = _FORMATS.get(name, (name, "{:.2%}"))
        table.add_row(label, name, "-" if math.isnan(value) else style.format(value))
    Console().print(table)

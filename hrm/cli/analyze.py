"""``hrm analyze``: see a model think."""

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli import app
from hrm.cli.settings import PuzzleEmb, load_for, read_settings, require_free, seed
from hrm.errors import InputError
from hrm.progress import progress_bar


@app.command()
def analyze(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Model folder, run, checkpoint or model name.")],
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="data=DIR [puzzles=100 boards=6 baselines=300 seed=0]",
            help="The data folder; puzzles whose states are looked at; boards shown; batches that the recurrent and "
            "the feed-forward baseline are trained for (0: none), and the seed of these and of the untrained model.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html, analysis.json, pictures and animated boards.")],
    split: Annotated[str, typer.Option(help="Which split of the data: puzzles not trained on.")] = "test",
    max_steps: Annotated[int | None, typer.Option(help="Segments; default: as in training.")] = None,
    max_examples: Annotated[int, typer.Option(help="Puzzles for accuracy and halting, from the start.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Replace these files where they exist.")] = False,
    puzzle_emb: PuzzleEmb = "strict",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Report how CKPT solves the puzzles of data=DIR.

    Answers, accuracy and halting by segment, halting against difficulty; forward residuals of both states beside those
    of a recurrent and a feed-forward network of the same blocks; participation ratios, trained and untrained; PCA of
    trajectories. OUT/report.html has it all and needs no other file.
    """
    settings = read_settings("analyze", values, puzzles=int, boards=int, baselines=int, seed=seed)
    folder, steps = settings.pop("data"), settings.pop("baselines", 300)
    if steps < 0:
        raise InputError(f"baselines is {steps}, expected the number of batches they are trained for, or 0")
    from hrm.analysis.report import FILES
    from hrm.analysis.report import analyze as look
    from hrm.data import task_of
    from hrm.data.format import open_dataset
    from hrm.training.distributed import joined

    require_free(out, (*FILES, *(f"board-{number + 1}.gif" for number in range(settings.get("boards", 6)))), force)
    with joined(device) as world, progress_bar() as progress:
        if world.size > 1:
            raise InputError("hrm analyze runs in one process; start it without torchrun")
        dataset = open_dataset(folder, split)
        metadata = dataset.metadata
        found = look(
            load_for(dataset, checkpoint, world.device, puzzle_emb),
            task_of(metadata.vocab_size, metadata.seq_len, metadata.task),
            dataset,
            open_dataset(folder, "train") if steps else None,
            max_steps=max_steps,
            max_examples=max_examples,
            baseline_steps=steps or 1,
            progress=progress,
            **settings,
        )
    found.save(out, f"{checkpoint} on {folder} ({split})")
    answers = found.answers
    print(
        f"{len(answers.inputs)} puzzles: {answers.right[-1].mean():.2%} all right after {answers.steps} segments, "
        f"{answers.right_when_halting.mean():.2%} halting by Q after {answers.halting_steps.mean():.2f}"
    )
    for trained in (True, False):
        high, low = (found.participation(trained, level) for level in ("H", "L"))  # type: ignore[arg-type]
        print(f"participation ratio, {'trained' if trained else 'untrained'}: z_H {high:.2f}, z_L {low:.2f}")
    print(f"{out / 'report.html'}")

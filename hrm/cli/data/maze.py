"""``hrm data maze``: generate mazes, or take them from files or the hub."""

from typing import Annotated

import typer

from hrm.cli.data.options import Csv, Force, Out, SkipBad, Test, Train
from hrm.cli.data.sources import Selection, find_sources, read_splits, shuffled_split
from hrm.cli.data.writing import DATA_FOLDER, finish
from hrm.cli.options import Seed
from hrm.errors import InputError
from hrm.files import require_new
from hrm.progress import begun, progress_bar


def maze(
    out: Out,
    csv: Csv = None,
    hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Read mazes from a data set of the hub: sapientinc/maze-30x30-hard-1k."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows and columns: of generated mazes (default: 30), or required of files."),
    ] = None,
    train: Train = None,
    test: Test = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Add the 7 rotations and reflections of each training maze.")
    ] = False,
    min_path: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Fewest steps from S to G of generated mazes (default: size * size / 8, 112 for 30 x 30).",
        ),
    ] = None,
    max_path: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most steps from S to G of generated mazes.")
    ] = None,
    max_branch: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Fill the branches of generated mazes: cells farther than N from the path become walls.",
        ),
    ] = None,
    loops: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="Share of the inner walls of generated mazes to open (default: 0.04); 0 leaves one path only.",
        ),
    ] = None,
    min_rating: Annotated[int, typer.Option(min=0, metavar="N", help="Lowest rating of mazes from files.")] = 0,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Generate mazes with their shortest paths, or read them from CSV files (--csv) or the hub (--hub).

    The published recipe is --hub sapientinc/maze-30x30-hard-1k.
    """
    import numpy as np

    from hrm.data.maze import LOOPS, Maze, build_set, generate
    from hrm.data.puzzle_csv import BadRows

    require_new(out, force, *DATA_FOLDER)
    rng, bad = np.random.default_rng(seed), BadRows(skip_bad)
    with progress_bar() as progress:
        if csv is None and hub is None:
            task = Maze(30 if size is None else size)
            counts = (train or 1000, test or 200)
            share, report = LOOPS if loops is None else loops, begun(progress, "generating", sum(counts))
            mazes = generate(sum(counts), task.size, rng, min_path, max_path, max_branch, share, report)
            splits = shuffled_split(mazes, counts[1], rng)
        else:
            if not min_path is max_path is max_branch is loops is None:
                options = "--min-path, --max-path, --max-branch and --loops"
                raise InputError(f"{options} are for generated mazes; choose from files with --min-rating")
            task, paths = find_sources(csv, hub, Maze, size)
            splits = read_splits(paths, task, Selection(train, test, min_rating), bad, rng, progress)
    sets = {
        "train": build_set(splits["train"], augment, splits["test"].inputs),
        "test": build_set(splits["test"]),
    }
    finish(out, task, sets, bad, force)

"""``hrm data``: build data folders."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hrm.cli import app
from hrm.errors import InputError, printable
from hrm.files import require_new
from hrm.progress import Progress, begun, progress_bar

if TYPE_CHECKING:
    import numpy as np

    from hrm.data.csv_task import CsvTask
    from hrm.data.format import SetBuilder
    from hrm.data.puzzle_csv import BadRows
    from hrm.data.puzzles import Puzzles

data_app = typer.Typer(help="Build a data folder in the published format.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Task = TypeVar("Task", bound="CsvTask")


Out = Annotated[Path, typer.Option(help="The new data folder.")]
Csv = Annotated[
    Path | None,
    typer.Option(
        help="Puzzles from a folder with train.csv and test.csv (or .csv.gz), "
        "or from one such file, of which --test random puzzles are held out."
    ),
]
Train = Annotated[
    int | None,
    typer.Option(
        "--train",
        "--subsample",
        min=1,
        help="Training puzzles: how many to generate (1000), or to draw from files (all).",
    ),
]
Test = Annotated[
    int | None,
    typer.Option(
        "--test",
        "--test-subsample",
        min=1,
        help="Test puzzles: how many to generate (200), or to draw from files (all).",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave malformed rows out and count them.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the data folder if it exists.")]

DATA_FOLDER = (
    "data folder",
    ("identifiers.json", "test_puzzles.json", "*/dataset.json", "*/*__*.npy", "**/.DS_Store"),  # (the Mac adds those)
)
"""What ``--force`` replaces, for :func:`hrm.files.require_new`."""


@data_app.command()
def sudoku(
    out: Out,
    csv: Csv = None,
    hub: Annotated[
        str | None, typer.Option(help="Puzzles from a data set of the hub: sapientinc/sudoku-extreme.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="4, 6 or 9; the size of generated puzzles (9), or the one files must have.")
    ] = None,
    train: Train = None,
    test: Test = None,
    augment: Annotated[int, typer.Option(min=0, help="Random equivalent puzzles added to each training puzzle.")] = 0,
    min_rating: Annotated[int, typer.Option(min=0, help="Least difficulty: guesses a solver tries.")] = 0,
    extra_clues: Annotated[
        int, typer.Option(min=0, help="Generated puzzles get up to so many clues beyond those they need.")
    ] = 0,
    check_unique: Annotated[
        bool, typer.Option(help="Prove that each puzzle taken from a file has one solution (2 ms for a hard one).")
    ] = True,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Sudoku: generated (without --csv and --hub), from CSV files, or from the hub.

    The published recipe is --hub sapientinc/sudoku-extreme --train 1000 --augment 1000. Generated training and test
    puzzles are distinct; a 4 x 4 puzzle may still have an equivalent (digits renamed, rows swapped) in the other set,
    as there are few.
    """
    import numpy as np

    from hrm.data.puzzle_csv import BadRows
    from hrm.data.sudoku import Sudoku, build_set, generate, solve

    require_new(out, force, *DATA_FOLDER)
    rng, bad = np.random.default_rng(seed), BadRows(skip_bad)
    with progress_bar() as progress:
        if csv is None and hub is None:
            task = Sudoku(9 if size is None else size)
            counts = (train or 1000, test or 200)
            generated = begun(progress, "generating", sum(counts))
            puzzles = generate(sum(counts), task.size, rng, min_rating, generated, extra_clues)
            splits = shuffled_split(puzzles, counts[1], rng)
        else:
            if extra_clues:
                raise InputError("--extra-clues is for generated puzzles; leave it out, or leave out --csv and --hub")
            task, paths = sources(csv, hub, Sudoku, size)
            splits = read_splits(paths, task, bad, train, test, min_rating, rng, progress)
            if check_unique:
                for split, path in zip(("train", "test"), (paths[0], paths[-1]), strict=True):
                    part = splits[split]
                    found = solve(part.inputs, begun(progress, f"solving {split}", len(part))).counts
                    for index in np.flatnonzero(found != 1):
                        bad.report(path, int(part.lines[index]), "the question has several solutions, expected one")
                    splits[split] = part.take(found == 1)
        sets = {
            "train": build_set(
                splits["train"],
                augment,
                rng,
                splits["test"].inputs,
                begun(progress, "augmenting", len(splits["train"])),
            ),
            "test": build_set(splits["test"], 0, rng),
        }
    finish(out, task, sets, bad, force)


@data_app.command()
def maze(
    out: Out,
    csv: Csv = None,
    hub: Annotated[
        str | None, typer.Option(help="Mazes from a data set of the hub: sapientinc/maze-30x30-hard-1k.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Rows and columns of generated mazes (30), or the number that files must have."),
    ] = None,
    train: Train = None,
    test: Test = None,
    augment: Annotated[bool, typer.Option("--augment", help="Add the 7 turns and reflections of each maze.")] = False,
    min_path: Annotated[
        int | None,
        typer.Option(min=1, help="Least steps from S to G of generated mazes (size * size / 8: 112 for 30 x 30)."),
    ] = None,
    max_path: Annotated[int | None, typer.Option(min=1, help="Most steps from S to G of generated mazes.")] = None,
    max_branch: Annotated[
        int | None,
        typer.Option(
            min=0, help="Make walls of the cells of generated mazes that are farther than this from the path."
        ),
    ] = None,
    loops: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of inner walls of generated mazes to open (0.04); 0: no way round."),
    ] = None,
    min_rating: Annotated[int, typer.Option(min=0, help="Least rating of mazes from files.")] = 0,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Mazes with their shortest path: generated (without --csv and --hub), from CSV files, or from the hub.

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
            generated = begun(progress, "generating", sum(counts))
            share = LOOPS if loops is None else loops
            mazes = generate(sum(counts), task.size, rng, min_path, max_path, max_branch, share, generated)
            splits = shuffled_split(mazes, counts[1], rng)
        else:
            if not min_path is max_path is max_branch is loops is None:
                options = "--min-path, --max-path, --max-branch and --loops"
                raise InputError(f"{options} are for generated mazes; choose from files with --min-rating")
            task, paths = sources(csv, hub, Maze, size)
            splits = read_splits(paths, task, bad, train, test, min_rating, rng, progress)
    sets = {
        "train": build_set(splits["train"], augment, splits["test"].inputs),
        "test": build_set(splits["test"]),
    }
    finish(out, task, sets, bad, force)


def sources(csv: Path | None, hub: str | None, task_type: type[Task], size: int | None) -> tuple[Task, list[Path]]:
    """The task and one or two files of puzzles (train and test) that the options name.

    Raises:
        InputError: the options exclude each other, a file is missing, or the puzzles have another size.
    """
    from hrm.data.hub import hub_file
    from hrm.data.puzzle_csv import find_split, task_of_file

    if csv is not None and hub is not None:
        raise InputError("--csv and --hub are two sources; give one")
    if hub is not None:
        paths = [hub_file(hub, f"{split}.csv") for split in ("train", "test")]
    elif csv is not None and csv.is_dir():
        paths = [find_split(csv, split) for split in ("train", "test")]
    else:
        assert csv is not None
        paths = [csv]
    task = task_of_file(paths[0], task_type)
    if size is not None and task.size != size:
        raise InputError(f"{paths[0]} has puzzles of size {task.size}, --size asks for {size}; leave --size out")
    return task, paths


def read_splits(
    paths: list[Path],
    task: "CsvTask",
    bad: "BadRows",
    train: int | None,
    test: int | None,
    min_rating: int,
    rng: "np.random.Generator",
    progress: Progress,
) -> "dict[str, Puzzles]":
    """Read the files; from a single one, ``test`` random puzzles are held out.

    Raises:
        InputError: a row is malformed, or too few puzzles are left.
    """
    from hrm.data.puzzle_csv import read_puzzles

    parts = []
    for path in paths:
        part = read_puzzles(path, task, bad, begun(progress, f"reading {path.name}", None))
        parts.append(part.take(part.ratings >= min_rating))
        if not len(parts[-1]):
            rated = f" of rating {min_rating} or more (highest {part.ratings.max()})" if len(part) else ""
            way_out = "lower --min-rating" if rated else "give a file with puzzles"
            raise InputError(f"{path} has no usable puzzle{rated}; {way_out}")
    if len(parts) == 2:
        return {"train": parts[0].sample(train, rng), "test": parts[1].sample(test, rng)}
    if test is None:
        raise InputError(f"{paths[0]} is one file; say with --test how many of its puzzles to hold out for the test")
    splits = shuffled_split(parts[0], test, rng)
    return {"train": splits["train"].sample(train, rng), "test": splits["test"]}


def shuffled_split(puzzles: "Puzzles", test: int, rng: "np.random.Generator") -> "dict[str, Puzzles]":
    """Hold ``test`` random puzzles out, and leave their repetitions out of the training set.

    Raises:
        InputError: no puzzle would be left to train on.
    """
    import numpy as np

    from hrm.data.puzzles import row_keys

    order = rng.permutation(len(puzzles))
    held_out, rest = puzzles.take(order[:test]), puzzles.take(order[test:])
    rest = rest.take(~np.isin(row_keys(rest.inputs), row_keys(held_out.inputs)))
    if not len(rest):
        raise InputError(f"holding out {test} of {len(puzzles)} puzzles leaves none to train on; lower --test")
    return {"train": rest, "test": held_out}


def finish(out: Path, task: "CsvTask", sets: "dict[str, SetBuilder]", bad: "BadRows", force: bool) -> None:
    """Write the folder, and say what it holds and what was left out."""
    import numpy as np

    from hrm.data.format import write_dataset
    from hrm.data.puzzles import row_keys

    write_dataset(
        out,
        {split: {"all": builder} for split, builder in sets.items()},
        vocab_size=task.vocab_size,
        seq_len=task.seq_len,
        overwrite=force,
        task=task.name,
    )
    if bad.count:
        print(f"hrm: {bad.count} malformed rows left out:", *map(printable, bad.reasons), sep="\n  ", file=sys.stderr)
        if bad.count > len(bad.reasons):
            print(f"  and {bad.count - len(bad.reasons)} more", file=sys.stderr)
    train, test = (np.unique(row_keys(sets[split].arrays(task.seq_len)["inputs"])) for split in ("train", "test"))
    shared = np.intersect1d(train, test)
    if len(shared):
        print(f"hrm: {len(shared)} test puzzles are also training puzzles", file=sys.stderr)
    counts = ", ".join(
        f"{split} {builder.num_examples} puzzles in {len(builder.group_indices) - 1} groups"
        for split, builder in sets.items()
    )
    print(f"{out}: {task.name} {task.size} x {task.size}, {counts}")

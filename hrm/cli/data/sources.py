"""Where the puzzles of a data folder come from: files or the hub, and how they are split."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hrm.errors import InputError
from hrm.progress import Progress, begun

if TYPE_CHECKING:
    import numpy as np

    from hrm.data.csv_task import CsvTask
    from hrm.data.puzzle_csv import BadRows
    from hrm.data.puzzles import Puzzles

Task = TypeVar("Task", bound="CsvTask")


@dataclass(frozen=True)
class Selection:
    """Which puzzles of the files are used.

    Attributes:
        train, test: how many are drawn for each split; None: all. Of a single file, ``test`` puzzles are held out.
        min_rating: the lowest rating.
    """

    train: int | None
    test: int | None
    min_rating: int


def find_sources(csv: Path | None, hub: str | None, task_type: type[Task], size: int | None) -> tuple[Task, list[Path]]:
    """The task and one or two files of puzzles (train and test) that the options name.

    Raises:
        InputError: the options exclude each other, a file is missing, or the puzzles have another size.
    """
    from hrm.data.hub import hub_file
    from hrm.data.puzzle_csv import find_split, task_of_file

    if csv is not None and hub is not None:
        raise InputError("--csv and --hub exclude each other; give one")
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
    selection: Selection,
    bad: "BadRows",
    rng: "np.random.Generator",
    progress: Progress,
) -> "dict[str, Puzzles]":
    """Read the selected puzzles of the files.

    Raises:
        InputError: a row is malformed, or too few puzzles are left.
    """
    from hrm.data.puzzle_csv import read_puzzles

    parts = []
    for path in paths:
        part = read_puzzles(path, task, bad, begun(progress, f"reading {path.name}", None))
        parts.append(part.take(part.ratings >= selection.min_rating))
        if not len(parts[-1]):
            rated = f" of rating {selection.min_rating} or more (highest {part.ratings.max()})" if len(part) else ""
            way_out = "lower --min-rating" if rated else "give a file with puzzles"
            raise InputError(f"{path} has no usable puzzle{rated}; {way_out}")
    if len(parts) == 2:
        return {"train": parts[0].sample(selection.train, rng), "test": parts[1].sample(selection.test, rng)}
    if selection.test is None:
        raise InputError(f"{paths[0]} is one file; add --test N to hold out N of its puzzles for the test split")
    splits = shuffled_split(parts[0], selection.test, rng)
    return {"train": splits["train"].sample(selection.train, rng), "test": splits["test"]}


def shuffled_split(puzzles: "Puzzles", test: int, rng: "np.random.Generator") -> "dict[str, Puzzles]":
    """Hold out ``test`` random puzzles, and remove copies of them from the training set.

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

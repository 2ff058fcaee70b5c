"""The data folder of ARC tasks, as the published builder lays it out."""

import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hrm.data.arc.augmentation import Augmentations, augment, augmentations, random_of
from hrm.data.arc.grids import SIDE, encode
from hrm.data.arc.puzzle import Arc
from hrm.data.arc.tasks import ArcTask, Pair
from hrm.data.format import SetBuilder, write_dataset
from hrm.errors import InputError

Progress = Callable[[str, int, int], object]
"""Called with the name of the work, how much of it is done, and how much there is."""


def _examples(
    pairs: tuple[Pair, ...], variants: Augmentations, shifts: np.random.Generator | None, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of all variants, ``[variants * pairs, side * side]`` each; an unknown output is all padding.

    With ``shifts``, input and output of a pair are placed at the same random position of the board. One random pair of
    each variant stays at the top left, where the tests are.
    """
    boards = np.zeros((2, len(variants), len(pairs), side * side), np.uint8)
    unshifted = None if shifts is None else shifts.integers(0, len(pairs), len(variants))
    for transform, which in variants.by_transform():
        for number, pair in enumerate(pairs):
            grids = [None if grid is None else augment(grid, transform, variants.colours[which]) for grid in pair]
            offsets = None
            if shifts is not None and unshifted is not None:
                largest = np.max([grid.shape[1:] for grid in grids if grid is not None], axis=0)
                offsets = shifts.integers(0, side + 1 - largest, (len(which), 2))
                offsets[unshifted[which] == number] = 0
            for board, grid in zip(boards, grids, strict=True):
                if grid is not None:
                    board[which, number] = encode(grid, offsets, side)
    inputs, labels = boards.reshape(2, -1, side * side)
    return inputs, labels


@dataclass
class _ArcSet(SetBuilder):
    """A set whose examples are computed while they are written: 1000 augmentations would take 6 GB of memory."""

    side: int = SIDE
    groups: list[Callable[[], tuple[np.ndarray, np.ndarray]]] = field(default_factory=list)
    progress: Progress = lambda *_: None

    def add_group(
        self, pairs: tuple[Pair, ...], variants: Augmentations, identifier: int, shifts: np.random.Generator | None
    ) -> None:
        """Add a task: ``pairs`` in all ``variants``, with consecutive puzzle identifiers from ``identifier``."""
        count = len(variants) * len(pairs)
        first = self.num_examples + len(pairs)
        self.groups.append(lambda: _examples(pairs, variants, shifts, self.side))
        self.puzzle_indices.extend(range(first, first + count, len(pairs)))
        self.puzzle_identifiers.extend(range(identifier, identifier + len(variants)))
        self.num_examples += count
        self.end_group()

    def save(self, directory: Path, name: str, seq_len: int) -> None:
        super().save(directory, name, seq_len)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.num_examples, seq_len)}
        with ExitStack() as stack:
            files = [stack.enter_context(open(directory / f"{name}__{key}.npy", "wb")) for key in ("inputs", "labels")]
            for file in files:
                np.lib.format.write_array_header_1_0(file, header)
            for done, make in enumerate(self.groups, 1):
                for file, array in zip(files, make(), strict=True):
                    file.write(array.data)
                self.progress(f"writing {directory.name}", done, len(self.groups))


def tests_trained_on(tasks: Collection[ArcTask], test_subsets: Collection[str]) -> list[str]:
    """The tests that are also training examples, whatever their task is called: one line each.

    A test without a solution counts if its input is the input of a training example.
    """

    def key(grid: np.ndarray | None) -> tuple[tuple[int, ...], bytes] | None:
        return None if grid is None else (grid.shape, grid.tobytes())

    trained: dict[Any, str] = {}
    for task in tasks:
        kinds = {"demonstration": task.train, "test": () if task.subset in test_subsets else task.test}
        for kind, pairs in kinds.items():
            for number, (grid, answer) in enumerate(pairs, 1):
                if answer is not None:
                    place = f"{kind} {number} of {task.name}"
                    trained.setdefault((key(grid), key(answer)), place)
                    trained.setdefault((key(grid), None), place)
    return [
        f"test {number} of {task.name} is {example}"
        for task in tasks
        if task.subset in test_subsets
        for number, pair in enumerate(task.test, 1)
        if (example := trained.get((key(pair[0]), key(pair[1]))))
    ]


def build(
    folder: Path | str,
    tasks: Collection[ArcTask],
    *,
    test_subsets: Collection[str],
    side: int = SIDE,
    augment: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, SetBuilder]:
    """Write the data folder of ``tasks``, as the published builder lays it out.

    A group is a task; its puzzles are the task and its variants. A name has the same puzzle identifier in both splits.

    The train split holds the demonstrations of all tasks and the solved tests of tasks outside ``test_subsets``,
    shifted at random. The test split holds the tests of tasks in ``test_subsets``, not shifted; the labels of an
    unknown solution are padding, which is ignored. ``test_puzzles.json`` keeps the original tasks of the test split for
    voting.

    Args:
        folder: the new folder.
        tasks: the tasks, each name once.
        test_subsets: names of the subsets to test on.
        side: rows and columns of the board, at least those of the largest grid; published: 30.
        augment: number of variants of each task beside itself; fewer if the task has fewer.
        seed: the same seed and tasks give the same files.
        overwrite: replace an existing folder.
        progress: called as the work goes on.

    Returns:
        The sets by split, for their counts.

    Raises:
        InputError: the folder exists, no task is in ``test_subsets``, a grid is larger than the board, or the disk does
            not have enough space.
    """
    subsets = sorted({task.subset for task in tasks})
    if not any(task.subset in test_subsets for task in tasks):
        raise InputError(
            f"no task is in the test subset {' or '.join(test_subsets)}; name one with --test-subset "
            f"(there are tasks in: {', '.join(subsets) or 'none'})"
        )
    board = Arc(side)
    for task in tasks:
        for shape in (grid.shape for pair in task.train + task.test for grid in pair if grid is not None):
            if max(shape) > side:
                raise InputError(
                    f"task {task.name} has a grid of {shape[0]} x {shape[1]}, larger than the board of "
                    f"{side} x {side}; give a larger --side, or name smaller tasks with --tasks"
                )
    sets = {split: _ArcSet(side=side, progress=progress) for split in ("train", "test")}
    target = Path(folder).resolve()
    free = shutil.disk_usage(next(path for path in (target, *target.parents) if path.exists())).free
    identifiers = ["<blank>"]
    for done, task in enumerate(tasks, 1):
        variants = augmentations(task, augment, seed)
        tested = task.subset in test_subsets
        solved = () if tested else tuple(pair for pair in task.test if pair[1] is not None)
        shifts = random_of(seed, task.name, 1)
        sets["train"].add_group(task.train + solved, variants, len(identifiers), shifts)
        if tested:
            sets["test"].add_group(task.test, variants, len(identifiers), None)
        identifiers.extend(variants.names(task.name))
        size = sum(builder.num_examples for builder in sets.values()) * 2 * board.seq_len
        if size > free:
            raise InputError(
                f"{done} of {len(tasks)} tasks with {augment} variants take {size / 1e9:.0f} GB, but only "
                f"{free / 1e9:.0f} GB are free at {folder}; lower --augment"
            )
        progress("augmenting", done, len(tasks))
    write_dataset(
        folder,
        sets,
        vocab_size=board.vocab_size,
        seq_len=board.seq_len,
        identifiers=identifiers,
        overwrite=overwrite,
        files={"test_puzzles.json": {task.name: task.to_json() for task in tasks if task.subset in test_subsets}},
        task=Arc.name,
    )
    return dict(sets)

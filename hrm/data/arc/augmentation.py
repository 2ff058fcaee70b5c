"""Variants of a task: transformed grids in permuted colours.

An augmented task is named ``<id>|||t<dihedral id>|||<ten digits>``; digit c is the new colour of colour c.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from hrm.data.arc.grids import COLOURS
from hrm.data.arc.tasks import SEPARATOR, ArcTask
from hrm.data.dihedral import DIHEDRAL_INVERSE, dihedral
from hrm.errors import InputError

TRIES_PER_AUGMENTATION = 5
"""Random augmentations tried per requested one, as published: a task with few colours has few distinct ones."""


def augment(grid: np.ndarray, transform: int, colours: np.ndarray) -> np.ndarray:
    """Transform ``grid``, ``[rows, columns]``, and map its colours.

    ``colours`` is ``[..., 10]``, one or more colour maps; the result is ``[..., rows, columns]``.
    """
    return np.take(colours, dihedral(grid, transform), axis=-1)


def augmented_name(name: str, transform: int, colours: Iterable[int]) -> str:
    """The name of an augmentation of the task ``name``."""
    return f"{name}{SEPARATOR}t{transform}{SEPARATOR}{''.join(map(str, colours))}"


def original(name: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Split the name of an augmented task: the task's name, and the function that undoes the augmentation of a grid.

    The name of a task itself has nothing to undo.

    Raises:
        InputError: ``name`` contains the separator but does not describe an augmentation.
    """
    if SEPARATOR not in name:
        return name, lambda grid: grid
    match = re.fullmatch(r"(.+)\|\|\|t([0-7])\|\|\|(\d{10})", name, re.ASCII)
    if match is None or len(set(match[3])) < COLOURS:
        raise InputError(f"'{name}' is not the name of an augmented task; expected <id>|||t<0 to 7>|||<all ten digits>")
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
        """The name of each variant of the task ``name``."""
        variants = zip(self.transforms[1:].tolist(), self.colours[1:].tolist(), strict=True)
        return [name, *(augmented_name(name, *variant) for variant in variants)]

    def by_transform(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each transform in use, and the indices of the variants with this transform."""
        for transform in range(8):
            which = np.flatnonzero(self.transforms == transform)
            if which.size:
                yield transform, which


def random_of(seed: int, name: str, purpose: int) -> np.random.Generator:
    """A random generator that depends only on the task, not on the tasks around it."""
    return np.random.default_rng([seed, purpose, *name.encode()])


def _digests(task: ArcTask, variants: Augmentations) -> list[bytes]:
    """A hash per variant of all its grids, whatever the order of the pairs: equal variants have equal hashes."""
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

    A variant combines one of the eight dihedral transforms with a permutation of the colours 1 to 9. The same task and
    seed give the same variants, whatever the other tasks are.
    """
    random = random_of(seed, task.name, 0)
    identity = Augmentations(np.zeros(1, np.uint8), np.arange(COLOURS, dtype=np.uint8)[None])
    seen = set(_digests(task, identity))
    parts = [identity]
    missing, tries = count, TRIES_PER_AUGMENTATION * count
    while missing and tries:
        batch = min(max(missing, 100), tries)
        tries -= batch
        colours = np.tile(identity.colours, (batch, 1))
        colours[:, 1:] = random.permuted(colours[:, 1:], axis=1)
        candidates = Augmentations(random.integers(0, 8, batch, np.uint8), colours)
        new: list[int] = []
        for variant, digest in enumerate(_digests(task, candidates)):
            if len(new) < missing and digest not in seen:
                seen.add(digest)
                new.append(variant)
        parts.append(Augmentations(candidates.transforms[new], candidates.colours[new]))
        missing -= len(new)
    return Augmentations(
        np.concatenate([part.transforms for part in parts]), np.concatenate([part.colours for part in parts])
    )

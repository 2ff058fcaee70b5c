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
"""Random augmentations tried for each wanted one, as published: a task of few colours has few distinct ones."""


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

"""Bytes that a launch moves from and to memory: its tiles in turn, through a cache that drops the least recently used.

Memory is counted in granules of ``ROWS x COLUMNS`` elements of a matrix. Blocks that run side by side go through their
inner dimension in step, so each granule that several of them need is fetched once.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

ROWS, COLUMNS = 128, 64


class Matrix(NamedTuple):
    """A matrix in memory: its name tells it from others."""

    name: str
    rows: int
    columns: int
    itemsize: int

    @property
    def bytes(self) -> int:
        return self.rows * self.columns * self.itemsize


@dataclass
class Cache:
    """A cache of ``capacity`` bytes that drops what was used least recently.

    Attributes:
        read: bytes fetched from memory.
        written: bytes written to memory: of changed granules, when they are dropped or flushed.
    """

    capacity: int
    read: int = 0
    written: int = 0
    _held: "OrderedDict[tuple[str, int, int], tuple[int, bool]]" = field(default_factory=OrderedDict)
    _size: int = 0

    def touch(self, matrix: Matrix, row: int, column: int, write: bool = False) -> None:
        """Use the granule at ``(row, column)``, counted in granules."""
        key = (matrix.name, row, column)
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
            if write and not held[1]:
                self._held[key] = held[0], True
            return
        rows = min(ROWS, matrix.rows - row * ROWS)
        size = rows * min(COLUMNS, matrix.columns - column * COLUMNS) * matrix.itemsize
        self._held[key] = size, write
        self._size += size
        if not write:  # whole granules are written: nothing of them is fetched
            self.read += size
        while self._size > self.capacity:
            _, (size, changed) = self._held.popitem(last=False)
            self._size -= size
            self.written += size * changed

    def area(
        self, matrix: Matrix, rows: tuple[int, int], columns: tuple[int, int] | None = None, write: bool = False
    ) -> None:
        """Use the elements in ``rows`` and ``columns`` (first, end), beyond its edges none; columns None: all."""
        first_column, end_column = columns or (0, matrix.columns)
        for row in range(rows[0] // ROWS, -(-min(rows[1], matrix.rows) // ROWS)):
            for column in range(first_column // COLUMNS, -(-min(end_column, matrix.columns) // COLUMNS)):
                self.touch(matrix, row, column, write)

    def flush(self) -> None:
        """Write what has changed."""
        self.written += sum(size for size, changed in self._held.values() if changed)
        self._held = OrderedDict((key, (size, False)) for key, (size, _) in self._held.items())

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class Tiles(NamedTuple):
    """The tiles of a product ``x [M, K] @ w [N, K]^T``: a block computes one."""

    m: int
    n: int
    k: int
    n_fastest: bool = True

    def order(self, M: int, N: int) -> Iterator[tuple[int, int]]:
        """First row and first column of each tile, in the order of blocks."""
        rows, columns = range(0, M, self.m), range(0, N, self.n)
        if self.n_fastest:
            return ((row, column) for row in rows for column in columns)
        return ((row, column) for column in columns for row in rows)


def product(
    cache: Cache,
    x: Matrix,
    weights: Sequence[Matrix],
    out: Matrix,
    tiles: Tiles,
    at_once: int,
    residual: Matrix | None = None,
) -> None:
    """A product with each of ``weights`` (gate and up of a SwiGLU are two), ``at_once`` tiles side by side."""
    order = list(tiles.order(out.rows, out.columns))
    for first in range(0, len(order), at_once):
        wave = order[first : first + at_once]
        for k in range(0, x.columns, tiles.k):
            for row, column in wave:
                cache.area(x, (row, row + tiles.m), (k, k + tiles.k))
                for weight in weights:
                    cache.area(weight, (column, column + tiles.n), (k, k + tiles.k))
        for row, column in wave:
            place = (row, row + tiles.m), (column, column + tiles.n)
            if residual is not None:
                cache.area(residual, *place)
            cache.area(out, *place, write=True)


def pointwise(cache: Cache, reads: Sequence[Matrix], writes: Sequence[Matrix]) -> None:
    """A kernel that goes through all its matrices once, row by row."""
    for row in range(0, max(matrix.rows for matrix in (*reads, *writes)), ROWS):
        for matrix in reads:
            cache.area(matrix, (row, row + ROWS))
        for matrix in writes:
            cache.area(matrix, (row, row + ROWS), write=True)

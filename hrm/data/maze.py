"""Mazes of n x n cells with the shortest path from S to G: the task, a breadth-first flood, a generator.

Characters ``# SGo`` (wall, free, start, goal, path) are the tokens 1 to 5, 0 pads (https://arxiv.org/abs/2506.21734
and its data set maze-30x30-hard-1k).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import numpy as np

from hrm.data.dihedral import dihedral
from hrm.data.format import SetBuilder
from hrm.data.puzzle_csv import CsvTask, Puzzles, row_keys
from hrm.data.task import Cell
from hrm.errors import InputError

_WALL, _FREE, _START, _GOAL, _PATH = range(1, 6)
_CHARACTERS = "?# SGo"
_COLOURS = ("#d9a0a0", "#303030", "#ffffff", "#2f9e44", "#d9480f", "#8fbcf5")
_WRONG = "#f08c8c"

SMALLEST = 5
"""Fewest rows; a maze of 4 x 4 would have the shape of a 4 x 4 Sudoku."""
LARGEST = 1024
"""Most rows: as many cells as :data:`hrm.sizes.Length` allows."""


@dataclass(frozen=True)
class Maze(CsvTask):
    """Mazes of one size."""

    size: int = 30

    name: ClassVar[str] = "maze"
    symbols: ClassVar[dict[str, int]] = {".": _FREE} | {
        character: token for token, character in enumerate(_CHARACTERS) if token
    }
    letters: ClassVar[str] = "SGo"
    lengths: ClassVar[str] = f"n * n for a maze of n x n, n at least {SMALLEST} (900 for 30 x 30)"

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise InputError(f"maze of size {self.size} is too small; choose {SMALLEST} or more")
        if self.size > LARGEST:
            raise InputError(f"maze of size {self.size} is too large; choose at most {LARGEST}")

    @classmethod
    def of_length(cls, length: int) -> "Maze | None":
        size = isqrt(length)
        return cls(size) if SMALLEST <= size <= LARGEST and size * size == length else None

    @classmethod
    def of_text(cls, text: str) -> "Maze | None":
        lines = text.strip("\r\n").splitlines()
        if len(lines) < 2:
            return cls.of_length(len(text.strip("\r\n")))
        size = max(len(lines), *map(len, lines))
        return cls(size) if SMALLEST <= size <= LARGEST else None

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "Maze | None":
        return cls.of_length(seq_len) if vocab_size == len(_CHARACTERS) else None

    @property
    def vocab_size(self) -> int:
        return len(_CHARACTERS)

    @property
    def seq_len(self) -> int:
        return self.size * self.size

    def _lines(self, text: str) -> list[str]:
        """The rows of ``text``, or its one line; what it has too many blank lines of is cut off."""
        lines = text.splitlines()
        start, end = 0, len(lines)
        while end - start > 1 and end - start != self.size and not lines[end - 1]:
            end -= 1
        while end - start > 1 and end - start != self.size and not lines[start]:
            start += 1
        return lines[start:end]

    def one_line(self, text: str) -> str:
        lines = self._lines(text)
        # Editors drop spaces at the end of lines.
        return "".join(lines) if len(lines) < 2 else "".join(line.ljust(self.size) for line in lines)

    def parse(self, text: str) -> np.ndarray:
        lines = self._lines(text)
        if len(lines) == 1:
            if len(lines[0]) != self.seq_len:
                raise InputError(f"maze of one line has {len(lines[0])} characters, expected {self.seq_len}")
            text = lines[0]
        else:
            if len(lines) != self.size:
                raise InputError(f"maze has {len(lines)} rows, expected {self.size} (or one line of {self.seq_len})")
            for number, line in enumerate(lines, 1):
                if len(line) > self.size:
                    raise InputError(f"maze row {number} has {len(line)} characters, expected {self.size}")
            text = self.one_line(text)
        for index, character in enumerate(text):
            if character not in self.symbols:
                raise InputError(
                    f"maze has {character!r} at {self.place(index)}, "
                    "expected # (wall), a space or . (free), S (start), G (goal) or o (path)"
                )
        for character in "SG":
            if text.count(character) != 1:
                raise InputError(f"maze has {text.count(character)} {character}, expected one S (start), one G (goal)")
        return np.array([self.symbols[character] for character in text], np.uint8)

    def format(self, tokens: np.ndarray) -> str:
        return "".join(_CHARACTERS[token] for token in np.ravel(tokens))

    def render(self, tokens: np.ndarray) -> str:
        text = self.format(tokens).replace("#", "█").replace("o", "·")
        rule = "─" * self.size
        rows = [f"│{text[start : start + self.size]}│" for start in range(0, self.seq_len, self.size)]
        return "\n".join([f"┌{rule}┐", *rows, f"└{rule}┘"])

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        inputs, answer = np.ravel(inputs), np.ravel(answer)
        if len(inputs) != self.seq_len or len(answer) != self.seq_len:
            return f"{len(inputs)} and {len(answer)} cells, expected {self.seq_len}"
        for token in (_START, _GOAL):
            if (inputs == token).sum() != 1:
                return f"the maze has {(inputs == token).sum()} {_CHARACTERS[token]}, expected one"
        for index in np.flatnonzero(~_keeps(inputs, answer)):
            was, now = _CHARACTERS[inputs[index]], _CHARACTERS[answer[index]]
            return f"{self.place(int(index))} is {now!r} where the maze has {was!r}"
        shortest, through, marked = (int(value[0]) for value in self._lengths(inputs[None], answer[None]))
        if shortest < 0:
            return "no way leads from S to G"
        if through < 0:
            return "the path does not connect S and G"
        if through > shortest:
            return f"the path takes {through} steps, the shortest {shortest}"
        if marked != through - 1:
            return f"{marked - through + 1} cells are marked beside the path"
        return None

    def solves(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        good = ((inputs == _START).sum(1) == 1) & ((inputs == _GOAL).sum(1) == 1) & _keeps(inputs, answers).all(1)
        shortest, through, marked = self._lengths(inputs[good], answers[good])
        # With as many marked cells as a shortest path has, connecting S and G, they are one.
        good[good] = (shortest > 0) & (through == shortest) & (marked == through - 1)
        return good

    def _lengths(self, inputs: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``[n]`` each: steps from S to G at best, steps through marked cells (-1: none), and marked cells."""
        shape = (-1, self.size, self.size)
        start, goal = ((inputs == token).reshape(shape) for token in (_START, _GOAL))
        marked = (answers == _PATH).reshape(shape)
        shortest, through = (
            flood(free, start)[goal] for free in ((inputs != _WALL).reshape(shape), marked | start | goal)
        )
        return shortest, through, marked.sum((1, 2))

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        tokens, inputs = np.ravel(tokens), np.ravel(inputs)
        kept = _keeps(inputs, tokens)
        flat = [
            Cell(_CHARACTERS[token] if token in (_START, _GOAL) else "", _COLOURS[token] if good else _WRONG, "#ffffff")
            for token, good in zip(tokens, kept, strict=True)
        ]
        return [flat[start : start + self.size] for start in range(0, self.seq_len, self.size)]


def _keeps(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Where walls, start and goal stay and free cells are free or path."""
    open_cells = (inputs == _FREE) | (inputs == _PATH)
    return np.where(open_cells, (answers == _FREE) | (answers == _PATH), inputs == answers)


def flood(free: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Steps from the start cells to every cell.

    Args:
        free: ``[n, rows, columns]`` bool, the cells that can be entered.
        start: of the same shape, bool.

    Returns:
        ``[n, rows, columns]`` int32; -1 where no way leads.
    """
    count, rows, columns = free.shape
    # One flat array with a wall around each maze: a step is a shift, and none leads into a neighbour.
    stride = columns + 2
    unseen = np.pad(free & ~start, ((0, 0), (1, 1), (1, 1))).ravel()
    wave = np.pad(start, ((0, 0), (1, 1), (1, 1))).ravel()
    steps = np.where(wave, 0, -1).astype(np.int32)
    level = 0
    while wave.any():
        level += 1
        reached = np.zeros_like(wave)
        for shift in (1, stride):
            reached[shift:] |= wave[:-shift]
            reached[:-shift] |= wave[shift:]
        reached &= unseen
        unseen ^= reached
        np.copyto(steps, np.int32(level), where=reached)
        wave = reached
    return steps.reshape(count, rows + 2, stride)[:, 1:-1, 1:-1]


def default_min_path(size: int) -> int:
    """Steps that a generated path has at least: an eighth of the cells, 112 for 30 x 30 (Maze-Hard: above 110)."""
    return size * size // 8


LOOPS = 0.04
"""Share of the inner walls opened: enough for loops, so that the longer way round has to be ruled out."""
_BARREN = 3_000  # mazes in a row without a new puzzle, after which the generator gives up
_BATCH = 256  # mazes flooded together: 256 x 32 x 32 flags (260 KB) stay in cache


def _carve(size: int, loops: float, rng: np.random.Generator) -> np.ndarray:
    """``[size, size]`` bool: the free cells of a random maze, a depth-first tree with some walls opened."""
    top, left = (int(offset) for offset in rng.integers(0, 2, 2))
    rows, columns = (size - top + 1) // 2, (size - left + 1) // 2
    free = np.zeros((size, size), bool)
    lattice = free[top::2, left::2]
    lattice[:] = True
    # Rooms are numbered in a grid with a border of visited ones; walls open as [room, direction].
    visited = [True] * ((rows + 2) * (columns + 2))
    for row in range(rows):
        for column in range(columns):
            visited[(row + 1) * (columns + 2) + column + 1] = False
    moves = (1, -1, columns + 2, -columns - 2)
    room = (int(rng.integers(rows)) + 1) * (columns + 2) + int(rng.integers(columns)) + 1
    visited[room] = True
    trail = [room]
    draws = iter(rng.random(2 * rows * columns).tolist())
    while trail:
        room = trail[-1]
        ways = [move for move in moves if not visited[room + move]]
        if not ways:
            trail.pop()
            continue
        move = ways[int(next(draws) * len(ways))]
        visited[room + move] = True
        trail.append(room + move)
        row, column = divmod(room, columns + 2)
        next_row, next_column = divmod(room + move, columns + 2)
        free[top + row + next_row - 2, left + column + next_column - 2] = True
    between = np.zeros_like(free)
    between[top : top + 2 * rows - 1 : 2, left + 1 : left + 2 * columns - 1 : 2] = True
    between[top + 1 : top + 2 * rows - 1 : 2, left : left + 2 * columns - 1 : 2] = True
    free |= between & (rng.random(free.shape) < loops)
    return free


def _pick(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random true cell of each ``[n, rows, columns]`` mask that has one, as such a mask."""
    draws = np.where(mask, rng.random(mask.shape), 0).reshape(len(mask), -1)
    picked = np.zeros_like(draws, bool)
    picked[np.arange(len(mask)), draws.argmax(1)] = True
    return picked.reshape(mask.shape) & mask


def generate(
    count: int,
    size: int,
    rng: np.random.Generator,
    min_path: int | None = None,
    max_path: int | None = None,
    max_branch: int | None = None,
    loops: float = LOOPS,
    progress: Callable[[int], None] | None = None,
) -> Puzzles:
    """Make ``count`` distinct mazes with exactly one shortest path, marked in the answer; the rating is its steps.

    Args:
        count: number of mazes.
        size: rows and columns.
        rng: where the randomness comes from.
        min_path: least steps from S to G (None: :func:`default_min_path`, but 1 where there is a ``max_path``).
        max_path: most steps (None: as many as there are).
        max_branch: cells farther than this from the path become walls (None: as carved). A model learns the rule where
            few ways lead astray, and goes on from there.
        loops: share of the inner walls that are opened after carving; 0 leaves one way between any two cells.
        progress: called with the number of mazes made so far.

    Raises:
        InputError: size is too small, max_path is below min_path, loops is no share, or no maze with such a path turns
            up.
    """
    Maze(size)
    if not 0 <= loops <= 1:
        raise InputError(f"loops is {loops}, expected a share of the walls, 0 to 1")
    least = max(min_path or 0, 1) if min_path is not None or max_path is not None else default_min_path(size)
    most = size * size if max_path is None else max_path
    if most < least:
        raise InputError(f"no path has at least {least} and at most {most} steps; lower --min-path or raise --max-path")
    batches: list[Puzzles] = []
    known = np.zeros(0, np.uint64)
    made = barren = longest = 0
    while made < count:
        batch = min(_BATCH, 2 * (count - made) + 8)
        free = np.stack([_carve(size, loops, rng) for _ in range(batch)])
        start = _pick(free, rng)
        from_start = flood(free, start)
        longest = max(longest, int(from_start.max()))
        goal = _pick((from_start >= least) & (from_start <= most), rng)
        far = goal.any((1, 2))
        free, start, goal, from_start = free[far], start[far], goal[far], from_start[far]
        steps = from_start[goal]
        path = (from_start >= 0) & (from_start + flood(free, goal) == steps[:, None, None])
        if max_branch is not None:
            branch = flood(free, path)
            free &= (branch >= 0) & (branch <= max_branch)
        inputs = np.select([start, goal, free], [_START, _GOAL, _FREE], _WALL).astype(np.uint8)
        labels = np.where(path & ~start & ~goal, np.uint8(_PATH), inputs)
        inputs, labels = inputs.reshape(-1, size * size), labels.reshape(-1, size * size)
        keys = row_keys(inputs)
        first = np.unique(keys, return_index=True)[1]
        only = np.sum(path[first], (1, 2)) == steps[first] + 1  # several shortest paths have more cells
        keep = np.sort(first[only & ~np.isin(keys[first], known)])[: count - made]
        barren = 0 if len(keep) else barren + batch
        if barren > _BARREN:
            raise InputError(
                f"only {made} of {count} distinct {size} x {size} mazes with a path of {least} steps or more "
                f"{f'and at most {most} ' * (max_path is not None)}turned up "
                f"(the longest seen has {longest}); lower --min-path or ask for fewer"
            )
        batches.append(Puzzles(inputs[keep], labels[keep], steps[keep].astype(np.int64), np.zeros(len(keep), np.int64)))
        known = np.concatenate([known, keys[keep]])
        made += len(keep)
        if progress:
            progress(made)
    return Puzzles.concatenate(batches, size * size)


def build_set(puzzles: Puzzles, augment: bool = False, avoid: np.ndarray | None = None) -> SetBuilder:
    """One group for each maze: the maze itself, and with ``augment`` its seven other reflections and turns.

    A maze that ``avoid`` (``[m, seq_len]`` tokens of the test set) holds gives way to its original.
    """
    builder = SetBuilder()
    if not augment:
        builder.add_puzzles(puzzles.inputs, puzzles.labels)
        return builder
    size = round(puzzles.inputs.shape[1] ** 0.5)
    inputs, labels = (
        np.stack([dihedral(tokens.reshape(-1, size, size), transform) for transform in range(8)], 1)
        for tokens in (puzzles.inputs, puzzles.labels)
    )
    if avoid is not None:
        clash = np.isin(row_keys(inputs.reshape(-1, size * size)), row_keys(avoid)).reshape(-1, 8)
        for tokens in (inputs, labels):
            np.copyto(tokens, tokens[:, :1].copy(), where=clash[:, :, None, None])
    builder.add_puzzles(inputs.reshape(-1, size * size), labels.reshape(-1, size * size), 8)
    return builder

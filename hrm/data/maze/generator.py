"""Generate mazes with exactly one shortest path."""

from collections.abc import Callable

import numpy as np

from hrm.data.maze.paths import flood
from hrm.data.maze.puzzle import FREE, GOAL, PATH, START, WALL, Maze
from hrm.data.puzzles import Puzzles, row_keys
from hrm.errors import InputError


def default_min_path(size: int) -> int:
    """Fewest steps of a generated path: an eighth of the cells, 112 for 30 x 30 (Maze-Hard: above 110)."""
    return size * size // 8


LOOPS = 0.04
"""Share of the inner walls to open: enough for loops, so that the longer way round must be ruled out."""
_BARREN = 3_000  # the generator gives up after this many consecutive mazes without a new puzzle
_BATCH = 256  # mazes flooded together: 256 x 32 x 32 flags (260 KB) fit into the cache


def _carve(size: int, loops: float, rng: np.random.Generator) -> np.ndarray:
    """The free cells of a random maze, ``[size, size]`` bool: a depth-first tree with some walls opened."""
    top, left = (int(offset) for offset in rng.integers(0, 2, 2))
    rows, columns = (size - top + 1) // 2, (size - left + 1) // 2
    free = np.zeros((size, size), bool)
    lattice = free[top::2, left::2]
    lattice[:] = True
    # Nodes of the tree are numbered in a grid with a border of visited nodes.
    visited = [True] * ((rows + 2) * (columns + 2))
    for row in range(rows):
        for column in range(columns):
            visited[(row + 1) * (columns + 2) + column + 1] = False
    moves = (1, -1, columns + 2, -columns - 2)
    node = (int(rng.integers(rows)) + 1) * (columns + 2) + int(rng.integers(columns)) + 1
    visited[node] = True
    trail = [node]
    draws = iter(rng.random(2 * rows * columns).tolist())
    while trail:
        node = trail[-1]
        moves_left = [move for move in moves if not visited[node + move]]
        if not moves_left:
            trail.pop()
            continue
        move = moves_left[int(next(draws) * len(moves_left))]
        visited[node + move] = True
        trail.append(node + move)
        row, column = divmod(node, columns + 2)
        next_row, next_column = divmod(node + move, columns + 2)
        free[top + row + next_row - 2, left + column + next_column - 2] = True
    between = np.zeros_like(free)
    between[top : top + 2 * rows - 1 : 2, left + 1 : left + 2 * columns - 1 : 2] = True
    between[top + 1 : top + 2 * rows - 1 : 2, left : left + 2 * columns - 1 : 2] = True
    free |= between & (rng.random(free.shape) < loops)
    return free


def _pick(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random true cell of each ``[n, rows, columns]`` mask, as a mask; none where the mask has none."""
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
    """Generate ``count`` distinct mazes with exactly one shortest path, which is marked in the answer.

    The rating of a maze is the number of steps of its path.

    Args:
        count: number of mazes.
        size: rows and columns.
        rng: the source of randomness.
        min_path: fewest steps from S to G (None: :func:`default_min_path`, or 1 if there is a ``max_path``).
        max_path: most steps (None: no limit).
        max_branch: cells farther than this from the path become walls (None: none do). Mazes with few wrong ways are
            easier to learn first.
        loops: share of the inner walls to open after carving; 0 leaves one way between any two cells.
        progress: called with the number of mazes made so far.

    Raises:
        InputError: the size is too small, max_path is below min_path, loops is not a share, or the generator finds no
            maze with such a path.
    """
    Maze(size)
    if not 0 <= loops <= 1:
        raise InputError(f"loops is {loops}, expected a share of the walls, 0 to 1")
    least = max(min_path or 0, 1) if min_path is not None or max_path is not None else default_min_path(size)
    most = size * size if max_path is None else max_path
    if most < least:
        raise InputError(f"no path has {least} steps or more and at most {most}; lower --min-path or raise --max-path")
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
        inputs = np.select([start, goal, free], [START, GOAL, FREE], WALL).astype(np.uint8)
        labels = np.where(path & ~start & ~goal, np.uint8(PATH), inputs)
        inputs, labels = inputs.reshape(-1, size * size), labels.reshape(-1, size * size)
        keys = row_keys(inputs)
        first = np.unique(keys, return_index=True)[1]
        only = np.sum(path[first], (1, 2)) == steps[first] + 1  # several shortest paths have more cells
        keep = np.sort(first[only & ~np.isin(keys[first], known)])[: count - made]
        barren = 0 if len(keep) else barren + batch
        if barren > _BARREN:
            raise InputError(
                f"only {made} of {count} distinct {size} x {size} mazes with a path of {least} steps or more "
                f"{f'and at most {most} ' * (max_path is not None)}were found "
                f"(the longest path has {longest}); lower --min-path or ask for fewer"
            )
        batches.append(Puzzles(inputs[keep], labels[keep], steps[keep].astype(np.int64), np.zeros(len(keep), np.int64)))
        known = np.concatenate([known, keys[keep]])
        made += len(keep)
        if progress:
            progress(made)
    return Puzzles.concatenate(batches, size * size)

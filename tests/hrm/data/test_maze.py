from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.data import task_of
from hrm.data.dihedral import DIHEDRAL_INVERSE, dihedral
from hrm.data.maze import LOOPS, Maze, build_set, flood, generate
from hrm.data.puzzle_csv import BadRows, read_puzzles, task_of_file
from hrm.errors import InputError

INPUT = ["S #G ", " ### ", "     ", " ### ", "     "]
ANSWER = ["S #Go", "o###o", "ooooo", " ### ", "     "]


def queue_distances(free: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """Breadth-first search with a queue, cell by cell; shares no code with the package."""
    steps = np.full(free.shape, -1)
    steps[start] = 0
    queue = deque([start])
    while queue:
        row, column = queue.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= cell[0] < free.shape[0] and 0 <= cell[1] < free.shape[1]
            if inside and free[cell] and steps[cell] < 0:
                steps[cell] = steps[row, column] + 1
                queue.append(cell)
    return steps


def test_parse_reads_what_format_writes():
    task = Maze(5)
    tokens = task.parse("".join(INPUT))
    assert tokens.dtype == np.uint8
    assert tokens[:5].tolist() == [3, 2, 1, 4, 2]
    assert task.format(tokens) == "".join(INPUT)
    assert (task.parse("\n".join(line.rstrip() for line in INPUT) + "\n") == tokens).all()
    assert (task.parse("".join(INPUT).replace(" ", ".")) == tokens).all()
    answer = task.parse("".join(ANSWER))
    assert task.format(answer) == "".join(ANSWER)
    assert task.render(answer).splitlines()[1:3] == ["│S █G·│", "│·███·│"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S#G", "one line has 3 characters, expected 25"),
        ("\n".join(INPUT[:4]), "4 rows, expected 5"),
        ("\n".join([*INPUT[:4], "      #"]), "row 5 has 7 characters, expected 5"),
        ("".join(INPUT).replace("#", "x", 1), "'x' at row 1 column 3"),
        ("".join(INPUT).replace("S", " "), "0 S, expected one S"),
        ("".join(INPUT)[:-1] + "G", "2 G, expected one S"),
    ],
)
def test_parse_names_what_is_wrong(text, message):
    with pytest.raises(InputError, match=message):
        Maze(5).parse(text)


CASES = [
    (ANSWER, None),
    (["S #G ", "o###o", "ooooo", " ### ", "     "], "the path does not connect S and G"),
    (INPUT, "the path does not connect S and G"),
    (["S #Go", "o###o", "ooooo", "o### ", "     "], "1 cells are marked that are not on the path"),
    (["S #Go", "o###o", "o   o", "o###o", "ooooo"], "the path takes 13 steps, the shortest 9"),
    (["S oGo", "o###o", "ooooo", " ### ", "     "], "row 1 column 3 is 'o' where the maze has '#'"),
    (["  #Go", "o###o", "ooooo", " ### ", "     "], "row 1 column 1 is ' ' where the maze has 'S'"),
    (["S #Go", "o###o", "ooo#o", " ### ", "     "], "row 3 column 4 is '#' where the maze has ' '"),
]


def raw(rows: list[str]) -> np.ndarray:
    return np.array(["?# SGo".index(character) for character in "".join(rows)], np.uint8)


@pytest.mark.parametrize(("answer", "reason"), CASES)
def test_check_returns_the_reason(answer, reason):
    task = Maze(5)
    # 9 steps: down the left side, along the third row, up the right side.
    assert task.check(raw(INPUT), raw(answer)) == reason


def test_solves_agrees_with_check():
    inputs = np.stack([raw(INPUT)] * len(CASES))
    answers = np.stack([raw(answer) for answer, _ in CASES])
    assert Maze(5).solves(inputs, answers).tolist() == [reason is None for _, reason in CASES]
    assert Maze(5).check(raw(["#" * 5] * 5), raw(ANSWER)) == "the maze has 0 S, expected one"
    closed = ["S#  G", "##   ", "     ", "     ", "     "]
    assert Maze(5).check(raw(closed), raw(closed)) == "there is no way from S to G"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_flood_matches_a_search_with_a_queue(seed, rows, columns):
    rng = np.random.default_rng(seed)
    free = rng.random((4, rows, columns)) < 0.65
    start = np.zeros_like(free)
    cells = [(int(rng.integers(rows)), int(rng.integers(columns))) for _ in free]
    for mask, cell in zip(start, cells, strict=True):
        mask[cell] = True
    expected = [queue_distances(one, cell) for one, cell in zip(free, cells, strict=True)]
    assert (flood(free, start) == np.stack(expected)).all()


@pytest.mark.parametrize(("size", "count", "min_path"), [(5, 20, None), (8, 60, 20), (13, 60, None), (30, 40, 111)])
def test_generated_mazes_have_one_shortest_path_long_enough(size, count, min_path):
    mazes = generate(count, size, np.random.default_rng(size), min_path)
    assert len(mazes) == count == len({board.tobytes() for board in mazes.inputs})
    for tokens, answer, rating in zip(mazes.inputs, mazes.labels, mazes.ratings, strict=True):
        board = tokens.reshape(size, size)
        assert [(tokens == token).sum() for token in (0, 3, 4, 5)] == [0, 1, 1, 0]
        start, goal = (tuple(int(at) for at in np.argwhere(board == token)[0]) for token in (3, 4))
        steps = queue_distances(board != 1, start)
        assert steps[goal] == rating >= (min_path or size * size // 8)
        back = queue_distances(board != 1, goal)
        on = (steps >= 0) & (steps + back == rating)
        assert on.sum() == rating + 1  # one cell per step: no second shortest path
        on[start] = on[goal] = False
        assert (answer.reshape(size, size) == np.where(on, 5, board)).all()
    assert Maze(size).solves(mazes.inputs, mazes.labels).all()


@pytest.mark.parametrize(("min_path", "max_path", "lengths"), [(None, 3, {1, 2, 3}), (5, 6, {5, 6}), (4, 4, {4})])
def test_generated_paths_have_the_requested_length(min_path, max_path, lengths):
    mazes = generate(60, 11, np.random.default_rng(1), min_path, max_path)
    assert set(mazes.ratings.tolist()) == lengths
    assert Maze(11).solves(mazes.inputs, mazes.labels).all()


@pytest.mark.parametrize("max_branch", [0, 1, 3])
def test_generated_branches_have_the_requested_length(max_branch):
    mazes = generate(30, 11, np.random.default_rng(2), max_branch=max_branch)
    boards, answers = (tokens.reshape(-1, 11, 11) for tokens in (mazes.inputs, mazes.labels))
    farthest = [branch.max() for branch in flood(boards != 1, (answers >= 3) & (boards != 1))]
    assert max(farthest) == max_branch
    assert Maze(11).solves(mazes.inputs, mazes.labels).all()
    assert (mazes.ratings >= 15).all()


def test_loops_are_opened_walls():
    def ways_round(loops):
        free = generate(20, 11, np.random.default_rng(3), loops=loops).inputs.reshape(-1, 11, 11) != 1
        passages = (free[:, 1:] & free[:, :-1]).sum((1, 2)) + (free[:, :, 1:] & free[:, :, :-1]).sum((1, 2))
        return passages - free.sum((1, 2)) + 1  # 0 for a tree

    assert (ways_round(0) == 0).all()
    assert 0 < ways_round(LOOPS).mean() < ways_round(0.2).mean()


def test_generation_is_repeatable():
    first, again, other = (generate(5, 9, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.inputs == again.inputs).all()
    assert not (first.inputs == other.inputs).all()


def test_impossible_lengths_are_refused(monkeypatch):
    monkeypatch.setattr("hrm.data.maze.generator._BARREN", 100)
    with pytest.raises(InputError, match=r"with a path of 80 steps .*longest path has \d+\); lower --min-path"):
        generate(3, 9, np.random.default_rng(0), 80)
    with pytest.raises(InputError, match="a path of 80 steps or more and at most 81 were found"):
        generate(3, 9, np.random.default_rng(0), 80, 81)
    with pytest.raises(InputError, match="no path has 9 steps or more and at most 8; lower --min-path"):
        generate(3, 9, np.random.default_rng(0), 9, 8)
    with pytest.raises(InputError, match="loops is 1.5, expected a share of the walls, 0 to 1"):
        generate(3, 9, np.random.default_rng(0), loops=1.5)
    with pytest.raises(InputError, match="size 4 is too small; choose 5 or more"):
        generate(3, 4, np.random.default_rng(0))


def test_cells_colour_walls_path_and_damage():
    cells = Maze(5).cells(raw(ANSWER), raw(INPUT))
    assert (cells[0][0].text, cells[0][3].text, cells[0][4].text) == ("S", "G", "")
    assert len({cells[0][index].background for index in range(5)}) == 5
    damaged = raw(ANSWER)
    damaged[2] = 2
    assert Maze(5).cells(damaged, raw(INPUT))[0][2].background == "#f08c8c"


def test_augmented_groups_contain_the_eight_symmetries():
    mazes = generate(3, 9, np.random.default_rng(0))
    arrays = build_set(mazes, True).arrays(81)
    assert arrays["group_indices"].tolist() == [0, 8, 16, 24]
    assert Maze(9).solves(arrays["inputs"], arrays["labels"]).all()
    assert len({board.tobytes() for board in arrays["inputs"]}) == 24
    assert (arrays["inputs"][::8] == mazes.inputs).all()
    assert (arrays["inputs"][1].reshape(9, 9) == np.rot90(mazes.inputs[0].reshape(9, 9))).all()
    avoided = arrays["inputs"][3:4]
    kept = build_set(mazes, True, avoided).arrays(81)
    assert (kept["inputs"][3] == mazes.inputs[0]).all() and (kept["labels"][3] == mazes.labels[0]).all()
    plain = build_set(mazes).arrays(81)
    assert plain["group_indices"].tolist() == [0, 1, 2, 3]
    assert (plain["labels"] == mazes.labels).all()


def test_dihedral_ids_and_inverses():
    grid = np.array([[1, 2, 3], [4, 5, 6]])
    expected = [
        grid,
        [[3, 6], [2, 5], [1, 4]],
        [[6, 5, 4], [3, 2, 1]],
        [[4, 1], [5, 2], [6, 3]],
        [[3, 2, 1], [6, 5, 4]],
        [[4, 5, 6], [1, 2, 3]],
        [[1, 4], [2, 5], [3, 6]],
        [[6, 3], [5, 2], [4, 1]],
    ]
    for transform, value in enumerate(expected):
        assert dihedral(grid, transform).tolist() == np.asarray(value).tolist()
        assert (dihedral(dihedral(grid, transform), DIHEDRAL_INVERSE[transform]) == grid).all()
        batch = dihedral(np.stack([grid, grid + 10]), transform)
        assert (batch[1] == dihedral(grid + 10, transform)).all()
    with pytest.raises(ValueError, match="transform is 8, expected 0 to 7"):
        dihedral(grid, 8)


def test_csv_round_trip_keeps_spaces_at_the_ends(tmp_path):
    mazes = generate(4, 9, np.random.default_rng(3))
    task = Maze(9)
    lines = [
        f"x,{task.format(inputs)},{task.format(labels)},{rating}"
        for inputs, labels, rating in zip(mazes.inputs, mazes.labels, mazes.ratings, strict=True)
    ]
    # A maze that starts and ends with free cells.
    spaces = "".join([" " * 9, "S" + " " * 7 + "G", *[" " * 9] * 7])
    answer = spaces.replace("S" + " " * 7 + "G", "S" + "o" * 7 + "G")
    path = tmp_path / "train.csv"
    path.write_text("\n".join(["source,question,answer,rating", *lines, f"x,{spaces},{answer},8"]) + "\n")
    assert task_of_file(path, Maze) == task
    read = read_puzzles(path, task, BadRows())
    assert (read.inputs[:4] == mazes.inputs).all() and (read.labels[:4] == mazes.labels).all()
    assert read.ratings.tolist() == [*mazes.ratings.tolist(), 8]
    assert task.format(read.inputs[4]) == spaces
    path.write_text(path.read_text() + f"x,{spaces},{spaces},8\n")
    with pytest.raises(InputError, match="train.csv:7: the answer does not solve the question: the path does not"):
        read_puzzles(path, task, BadRows())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([5, 9, 11]), st.integers(0, 2**32), st.sampled_from(["line", "rows", "stripped", "framed"]))
def test_a_csv_may_contain_everything_that_parse_reads(tmp_path_factory, size, seed, layout):
    mazes, task = generate(2, size, np.random.default_rng(seed), 1), Maze(size)

    def write(tokens):
        text = task.format(tokens).replace(" ", "." if seed % 2 else " ")
        rows = [text[start : start + size] for start in range(0, len(text), size)]
        rows[0] = rows[0].ljust(size)
        return {
            "line": text,
            "rows": "\r\n".join(rows),
            "stripped": "\n".join([rows[0], *(row.rstrip() for row in rows[1:]), ""]),
            "framed": "\n" + "\n".join(rows) + "\n",
        }[layout]

    path = tmp_path_factory.mktemp("maze") / "mazes.csv"
    lines = [f'"{write(inputs)}","{write(labels)}"\n' for inputs, labels in zip(mazes.inputs, mazes.labels)]
    path.write_bytes(("question,answer\n" + "".join(lines)).encode())
    assert task_of_file(path, Maze) == task
    read = read_puzzles(path, task, BadRows())
    assert (read.inputs == mazes.inputs).all() and (read.labels == mazes.labels).all()
    assert all((task.parse(write(tokens)) == tokens).all() for tokens in mazes.inputs)


def test_task_of_recognises_mazes_by_their_shape():
    assert task_of(6, 900) == Maze(30)
    assert task_of(6, 81) == Maze(9)
    for length in (80, 1025**2, 2**70):
        with pytest.raises(InputError, match=f"vocabulary 6 with {length} tokens"):
            task_of(6, length)
    with pytest.raises(InputError, match="maze of size 1025 is too large; choose at most 1024"):
        Maze(1025)

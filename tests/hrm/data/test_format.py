import json
import shutil

import numpy as np
import pytest

from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.errors import InputError
from hrm.files import folder_written_beside, read_json, write_json, written_beside

INPUTS = np.arange(24, dtype=np.uint8).reshape(6, 4) % 5
LABELS = INPUTS[::-1].copy()


def builder() -> SetBuilder:
    """Two groups: puzzles of 2 and 1 examples; a puzzle of 3."""
    one = SetBuilder()
    for group in ([(0, 2, 1), (2, 3, 2)], [(3, 6, 3)]):
        for start, end, identifier in group:
            for index in range(start, end):
                one.add_example(INPUTS[index], LABELS[index])
            one.end_puzzle(identifier)
        one.end_group()
    return one


def write(folder, overwrite=False, **extra):
    names = ["<blank>", "a", "b", "c"]
    splits = {"train": {"all": builder()}, "test": {"one": builder(), "two": builder()}}
    write_dataset(folder, splits, vocab_size=5, seq_len=4, identifiers=names, overwrite=overwrite, **extra)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data", task="sudoku", files={"more.json": {"x": [1]}})
    return tmp_path / "data"


def test_what_is_written_is_read(folder):
    train, test = open_dataset(folder, "train"), open_dataset(folder, "test")
    (only,) = train.sets
    assert (only.inputs == INPUTS).all() and (only.labels == LABELS).all()
    assert only.puzzle_indices.tolist() == [0, 2, 3, 6]
    assert only.group_indices.tolist() == [0, 2, 3]
    assert only.puzzle_identifiers.tolist() == [1, 2, 3]
    assert (only.num_examples, only.num_puzzles, only.num_groups) == (6, 3, 2)
    assert (test.num_examples, [one.name for one in test.sets]) == (12, ["one", "two"])
    assert train.identifiers() == ["<blank>", "a", "b", "c"]
    assert (train.metadata.task, train.metadata.vocab_size, train.metadata.total_groups) == ("sudoku", 5, 2)
    assert (train.metadata.mean_puzzle_examples, test.metadata.total_groups) == (2.0, 4)
    assert read_json(folder / "more.json") == {"x": [1]}
    assert isinstance(only.inputs, np.memmap)


def test_published_names_and_keys_are_on_disk(folder):
    assert {path.name for path in (folder / "train").iterdir()} == {
        "dataset.json",
        "all__inputs.npy",
        "all__labels.npy",
        "all__puzzle_indices.npy",
        "all__group_indices.npy",
        "all__puzzle_identifiers.npy",
    }
    assert json.loads((folder / "train" / "dataset.json").read_text()) == {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": 5,
        "seq_len": 4,
        "num_puzzle_identifiers": 4,
        "total_groups": 2,
        "mean_puzzle_examples": 2.0,
        "sets": ["all"],
        "task": "sudoku",
    }


def test_unknown_keys_are_kept(folder):
    path = folder / "train" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "total_puzzles": 3}))
    assert open_dataset(folder, "train").metadata.model_dump()["total_puzzles"] == 3


def test_puzzles_added_together_are_those_added_one_by_one():
    single, many = SetBuilder(), SetBuilder()
    for start in (0, 3):
        for index in range(start, start + 3):
            single.add_example(INPUTS[index], LABELS[index])
            single.end_puzzle()
        single.end_group()
    many.add_puzzles(INPUTS[:3], LABELS[:3], 3)
    many.add_puzzles(INPUTS[3:], LABELS[3:], 3)
    for key, array in single.arrays(4).items():
        assert (many.arrays(4)[key] == array).all() and many.arrays(4)[key].dtype == array.dtype
    with pytest.raises(ValueError, match="6 puzzles in groups of 4"):
        many.add_puzzles(INPUTS, LABELS, 4)
    single.add_example(INPUTS[0], LABELS[0])
    with pytest.raises(ValueError, match="a puzzle still open"):
        single.add_puzzles(INPUTS, LABELS)
    single.end_puzzle()
    with pytest.raises(ValueError, match="the group before is still open"):
        single.add_puzzles(INPUTS, LABELS)


def test_a_folder_is_replaced_only_on_request(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(InputError, match=r"exists already; choose another folder, or pass --force"):
        write(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    write(folder, overwrite=True)
    assert open_dataset(folder, "train").metadata.task is None
    assert not (folder / "more.json").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_a_split_without_examples_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="the test split would have no example"):
        splits = {"train": {"all": builder()}, "test": {"all": SetBuilder()}}
        write_dataset(tmp_path / "data", splits, vocab_size=5, seq_len=4)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_and_splits_are_named(tmp_path, folder):
    with pytest.raises(InputError, match="data folder .*nowhere does not exist; make one"):
        open_dataset(tmp_path / "nowhere", "train")
    shutil.rmtree(folder / "test")
    with pytest.raises(InputError, match=r"has no split 'test' \(it has train\)"):
        open_dataset(folder, "test")
    with pytest.raises(InputError, match="no split at all, so it is no data folder"):
        open_dataset(folder / "train", "test")


def set_array(name, make):
    def damage(directory):
        path = directory / f"all__{name}.npy"
        np.save(path, make(np.load(path)))

    return damage


def set_metadata(**keys):
    def damage(directory):
        path = directory / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

    return damage


def truncate(name, size):
    def damage(directory):
        path = directory / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


DAMAGE = {
    "seq_len": (
        set_metadata(seq_len=5),
        r"inputs.npy is uint8 of shape \[6, 4\], expected \[examples, 5\] \(seq_len\)",
    ),
    "vocab": (set_metadata(vocab_size=0), "dataset.json: vocab_size: Input should be greater than 0"),
    "pad": (set_metadata(pad_id=99), "dataset.json: pad_id is 99, expected less than vocab_size"),
    "blank": (set_metadata(blank_identifier_id=4), "blank_identifier_id is 4, expected less than num_puzzle_identifie"),
    "mean": (set_metadata(mean_puzzle_examples=float("nan")), "mean_puzzle_examples: Input should be a finite number"),
    "set": (set_metadata(sets=["all", "more"]), "more__inputs.npy is missing"),
    "labels": (set_array("labels", lambda a: a[:5]), r"labels.npy is uint8 of shape \[5, 4\], expected \[6, 4\]"),
    "float": (set_array("inputs", lambda a: a.astype(np.float32)), "inputs.npy is float32 .* expected integers"),
    "puzzles": (set_array("puzzle_indices", lambda a: a[:-1]), r"puzzle_indices.npy .* ascending from 0 to 6"),
    "order": (set_array("puzzle_indices", lambda a: a[[0, 2, 1, 3]]), "puzzle_indices.npy .* ascending from 0 to 6"),
    "groups": (set_array("group_indices", lambda a: a + 1), "group_indices.npy .* ascending from 0 to 3"),
    "identifier": (set_array("puzzle_identifiers", lambda a: a + 1), "values below num_puzzle_identifiers 4"),
    "count": (set_array("puzzle_identifiers", lambda a: a[:0]), "group_indices.npy .* ascending from 0 to 0"),
    "truncated": (truncate("all__inputs.npy", 140), "inputs.npy cannot be read as a NumPy array"),
    "empty": (truncate("all__labels.npy", 0), "labels.npy cannot be read as a NumPy array"),
    "header": (truncate("all__group_indices.npy", 20), "group_indices.npy cannot be read as a NumPy array"),
    "json": (truncate("dataset.json", 30), "dataset.json is not JSON"),
    "list": (
        lambda directory: (directory / "dataset.json").write_text("[1]"),
        "dataset.json: Input should be a valid d",
    ),
    "deep": (lambda directory: (directory / "dataset.json").write_text("[" * 100_000), "dataset.json is not JSON"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_data_is_named(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder / "train")
    with pytest.raises(InputError, match=message):
        open_dataset(folder, "train")


def test_pickled_arrays_are_refused(folder):
    np.save(folder / "train" / "all__inputs.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as a NumPy array"):
        open_dataset(folder, "train")


def test_a_data_set_of_no_examples_is_refused(folder):
    for name, end in (("inputs", 0), ("labels", 0), ("puzzle_indices", 1), ("group_indices", 1)):
        set_array(name, lambda a, end=end: a[:end])(folder / "train")
    set_array("puzzle_identifiers", lambda a: a[:0])(folder / "train")
    with pytest.raises(InputError, match="holds no examples; build the data set again"):
        open_dataset(folder, "train")


def test_a_file_is_as_before_after_an_error(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), written_beside(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    write_json(path, [2])
    assert read_json(path) == [2]
    assert [one.name for one in path.parent.iterdir()] == ["file.json"]
    with pytest.raises(InputError, match="no.json is missing"):
        read_json(tmp_path / "no.json")


def test_a_folder_is_as_before_after_an_error(tmp_path):
    folder = tmp_path / "folder"
    with folder_written_beside(folder) as part:
        (part / "a").write_text("old")
    with pytest.raises(RuntimeError), folder_written_beside(folder, overwrite=True) as part:
        (part / "a").write_text("new")
        raise RuntimeError
    assert (folder / "a").read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="folder is a folder; give the name"), written_beside(folder):
        pass
    with pytest.raises(InputError, match="file is a file; choose another name"), folder_written_beside(file):
        pass

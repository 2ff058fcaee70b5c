import io
import json
import os
import shutil

import numpy as np
import pytest

from hrm.data.batches import TrainingSampler
from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.data.sudoku import Sudoku
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


def test_a_written_data_set_is_read_back(folder):
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
        "total_puzzles": 3,
        "sets": ["all"],
        "task": "sudoku",
    }


def test_unknown_keys_are_kept(folder):
    path = folder / "train" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "author": "me"}))
    assert open_dataset(folder, "train").metadata.model_dump()["author"] == "me"


def test_folders_of_both_published_builders_are_read(folder):
    """TRM's loader requires total_puzzles, which HRM's builders do not write."""
    path = folder / "train" / "dataset.json"
    of_trm = json.loads(path.read_text())
    assert of_trm["total_puzzles"] == len(np.load(folder / "train" / "all__puzzle_indices.npy")) - 1
    of_hrm = {key: value for key, value in of_trm.items() if key not in ("total_puzzles", "task")}
    path.write_text(json.dumps(of_hrm))
    assert open_dataset(folder, "train").num_examples == 6


def test_a_folder_of_nano_trm_is_recognised(folder):
    keys = {"num_puzzles": 6, "grid_size": 2, "max_grid_size": 2, "seq_len": 4, "vocab_size": 5}
    (folder / "train" / "dataset.json").write_text(json.dumps(keys))
    with pytest.raises(InputError, match="is a data folder of nano-trm, .*; make one of the same puzzles: hrm data"):
        open_dataset(folder, "train")


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i8", ">i4", ">u8"])
def test_indices_of_any_integer_type_are_read(folder, dtype):
    for key in ("puzzle_indices", "group_indices", "puzzle_identifiers"):
        set_array(key, lambda a: a.astype(dtype))(folder / "train")
    (only,) = open_dataset(folder, "train").sets
    assert only.puzzle_indices.tolist() == [0, 2, 3, 6] and only.puzzle_indices.dtype == np.int64
    assert only.group_indices.tolist() == [0, 2, 3] and only.puzzle_identifiers.tolist() == [1, 2, 3]
    state = TrainingSampler(open_dataset(folder, "train"), 4).next()
    assert state["inputs"].shape == (4, 4)


@pytest.mark.parametrize("dtype", ["u1", "u8", "i4"])
@pytest.mark.parametrize("indices", [[0, 3, 2, 6], [0, 2, 3, 7], [1, 2, 3, 6], [0, 2, 250, 6], [0, 6], [], 6])
def test_indices_out_of_order_or_range_are_refused(folder, dtype, indices):
    set_array("puzzle_indices", lambda a: np.array(indices, dtype))(folder / "train")
    with pytest.raises(InputError, match="puzzle_indices.npy .* from 0 to 6|puzzle_identifiers.npy .* one for each"):
        open_dataset(folder, "train")


def npy(shape, data=b"", descr="<i4"):
    """The bytes of a file with a header of this shape, whatever the data."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + data


def zipped():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


MALFORMED_ARRAYS = {
    "zip": zipped(),
    "no dimension": npy("()", b"\0" * 4),
    "negative": npy("(-3,)", b"\0" * 12),
    "petabytes": npy("(1000000000000000,)"),
    "beyond 64 bits": npy("(4000000000000000000, 4)"),
    "40 digits": npy("(" + "9" * 40 + ",)"),
    "5000 digits": npy("(" + "9" * 5000 + ",)"),
    "floats": npy("(3,)", b"\0" * 12, "<f4"),
    "times": npy("(3,)", b"\0" * 24, "<m8[s]"),
    "half a header": npy("(3, "),
    "text for a size": npy("('a',)"),
    "half a zip": b"PK\x03\x04",
    "version 9": b"\x93NUMPY\x09\x09" + b"\xff" * 100,
}


@pytest.mark.parametrize("key", ["inputs", "puzzle_indices", "group_indices", "puzzle_identifiers"])
@pytest.mark.parametrize("kind", MALFORMED_ARRAYS)
@pytest.mark.filterwarnings("error")
def test_malformed_arrays_are_refused_before_memory_is_allocated(folder, key, kind):
    (folder / "train" / f"all__{key}.npy").write_bytes(MALFORMED_ARRAYS[kind])
    with pytest.raises(InputError, match=rf"all__{key}.npy (is|cannot be read as a NumPy array)"):
        open_dataset(folder, "train")


def test_paths_out_of_the_data_folder_are_refused(folder, tmp_path):
    for name in ("../train/all", "/etc/all", "a\\b", ".hidden", ""):
        set_metadata(sets=[name])(folder / "train")
        with pytest.raises(InputError, match="dataset.json: sets: the set name .* could lead out of the folder"):
            open_dataset(folder, "train")
    set_metadata(sets=["all"])(folder / "train")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("train/all__inputs.npy", "train/dataset.json", "identifiers.json", "more.json"):
        shutil.move(folder / name, elsewhere / "moved")
        (folder / name).symlink_to(elsewhere / "moved")
        with pytest.raises(InputError, match=rf"{name} leads out of its data folder, to .*moved; copy that file"):
            open_dataset(folder, "train").file(name)
        (folder / name).unlink()
        shutil.move(elsewhere / "moved", folder / name)
    (folder / "train" / "all__labels.npy").unlink()
    os.mkfifo(folder / "train" / "all__labels.npy")
    with pytest.raises(InputError, match="all__labels.npy is not a regular file"):
        open_dataset(folder, "train")


@pytest.mark.parametrize("value", [{"a": 1}, [1], "names", ["<blank>", None]])
def test_malformed_names_are_refused(folder, value):
    write_json(folder / "identifiers.json", value)
    with pytest.raises(InputError, match="identifiers.json is not a list of names; build the data set again"):
        open_dataset(folder, "train").identifiers()


def test_links_to_a_data_folder_and_within_the_hubs_cache_are_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert open_dataset(tmp_path / "link", "train").num_examples == 6
    snapshot, blobs = tmp_path / "datasets--a--b" / "snapshots" / "0123", tmp_path / "datasets--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / str(file.relative_to(folder)).replace("/", "-")
        shutil.copy(file, blob)
        link.symlink_to(blob)
    assert open_dataset(snapshot, "train").identifiers() == ["<blank>", "a", "b", "c"]


def test_puzzles_added_together_equal_puzzles_added_one_by_one():
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


def test_two_arrays_are_a_split(tmp_path):
    """Each row is a puzzle and a group. Tokens may have any integer dtype."""
    splits = {"train": (INPUTS.astype(np.int64), LABELS.tolist()), "test": builder()}
    write_dataset(tmp_path / "data", splits, vocab_size=5, identifiers=["<blank>", "a", "b", "c"])
    train, test = open_dataset(tmp_path / "data", "train"), open_dataset(tmp_path / "data", "test")
    (only,) = train.sets
    assert (only.name, only.inputs.dtype) == ("all", np.uint8)
    assert (only.inputs == INPUTS).all() and (only.labels == LABELS).all()
    assert only.puzzle_indices.tolist() == only.group_indices.tolist() == list(range(7))
    assert (train.metadata.seq_len, train.metadata.task, train.metadata.total_puzzles) == (4, None, 6)
    assert [one.name for one in test.sets] == ["all"] and test.num_groups == 2


def test_a_task_gives_the_shape_and_the_name(tmp_path):
    boards = np.full((3, 16), 2)
    write_dataset(tmp_path / "data", {"test": (boards, boards)}, task=Sudoku(4))
    metadata = open_dataset(tmp_path / "data", "test").metadata
    assert (metadata.task, metadata.vocab_size, metadata.seq_len) == ("sudoku", 6, 16)


def test_tokens_beyond_one_byte_are_written_in_a_wider_dtype(tmp_path):
    tokens = np.array([[1, 70_000, 3]])
    write_dataset(tmp_path / "data", {"test": (tokens, tokens)}, vocab_size=100_000)
    (only,) = open_dataset(tmp_path / "data", "test").sets
    assert only.inputs.tolist() == only.labels.tolist() == tokens.tolist() and only.inputs.dtype == np.uint32


BAD_ARRAYS = {
    "float": ((INPUTS / 2, LABELS), {}, "the test split: inputs of float64 hold values that are not integers"),
    "text": ((INPUTS.astype(str), LABELS), {}, "inputs of <U3 hold values that are not integers"),
    "NaN": ((INPUTS * np.nan, LABELS), {}, "inputs of float64 hold values that are not integers"),
    "negative": ((INPUTS, LABELS.astype(int) - 1), {}, "labels hold token -1, expected 0 or more"),
    "shapes": ((INPUTS, LABELS[:5]), {}, r"inputs of shape \[6, 4\], labels of shape \[5, 4\]; expected the same"),
    "one row": ((INPUTS[0], LABELS[0]), {}, r"inputs of shape \[4\], labels of shape \[4\]; expected the same"),
    "three": ((INPUTS, LABELS, LABELS), {}, r"the test split has 3 arrays, expected 2: \(inputs, labels\)"),
    "empty": ((INPUTS[:0], LABELS[:0]), {}, "the test split would have no example; give more puzzles"),
    "vocabulary": ((INPUTS, LABELS), {"vocab_size": 4}, "the inputs hold token 4, expected 0 to 3"),
    "huge vocabulary": ((INPUTS, LABELS), {"vocab_size": 2**40}, "vocab_size: Input should be less than or equal to"),
    "no vocabulary": ((INPUTS, LABELS), {"vocab_size": None}, "the vocabulary is missing; give vocab_size"),
    "length": ((INPUTS, LABELS), {"seq_len": 5}, "sequences of 4 tokens, expected 5"),
    "task": ((INPUTS, LABELS), {"task": Sudoku(4)}, "sequences of 4 tokens, expected 16"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_are_not_tokens_are_refused_before_anything_is_written(tmp_path, kind):
    split, options, message = BAD_ARRAYS[kind]
    with pytest.raises(InputError, match=message):
        write_dataset(tmp_path / "data", {"test": split}, **{"vocab_size": 5, **options})
    assert list(tmp_path.iterdir()) == []


def test_puzzle_identifiers_without_a_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="the test split has puzzle identifier 3, expected 0 to 0; give its name in"):
        write_dataset(tmp_path / "data", {"test": builder()}, vocab_size=5)
    assert list(tmp_path.iterdir()) == []


def test_reprs_are_readable(folder):
    test = open_dataset(folder, "test")
    assert repr(test) == (
        f"PuzzleDataset(folder: {folder}, split: test, task: sudoku, examples: 12, puzzles: 6, groups: 4, "
        "tokens in a sequence: 4, vocabulary: 5)"
    )
    assert repr(test.sets[0]) == "PuzzleSet('one', 6 examples, 3 puzzles, 2 groups, seq_len 4, uint8)"
    assert repr(builder()) == "SetBuilder(6 examples, 3 puzzles, 2 groups)"


def test_the_html_repr_escapes_what_the_folder_says(folder):
    set_metadata(task="<script>alert(1)</script>")(folder / "test")
    html = open_dataset(folder, "test")._repr_html_()
    assert "<tr><th>examples</th><td>12</td></tr>" in html
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in html and "<script" not in html


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
    with pytest.raises(InputError, match="no split, so it is not a data folder"):
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
    "huge mean": (set_metadata(mean_puzzle_examples=1e300), "mean_puzzle_examples is 1e.300, and there are 6 examples"),
    "huge words": (set_metadata(vocab_size=2**40), "vocab_size: Input should be less than or equal to 16777216 .got 1"),
    "huge rows": (set_metadata(num_puzzle_identifiers=10**12), "num_puzzle_identifiers: Input should be less than or"),
    "digits": (
        lambda directory: (directory / "dataset.json").write_text('{"pad_id": ' + "9" * 5000 + "}"),
        "dataset.json is not JSON: Exceeds the limit",
    ),
    "twice": (set_metadata(sets=["all", "all"]), "sets: a set is named twice"),
    "set": (set_metadata(sets=["all", "more"]), "more__inputs.npy is missing"),
    "labels": (set_array("labels", lambda a: a[:5]), r"labels.npy is uint8 of shape \[5, 4\], expected \[6, 4\]"),
    "float": (set_array("inputs", lambda a: a.astype(np.float32)), "inputs.npy is float32 .* expected integers"),
    "puzzles": (set_array("puzzle_indices", lambda a: a[:-1]), r"puzzle_indices.npy .* ascending from 0 to 6"),
    "order": (set_array("puzzle_indices", lambda a: a[[0, 2, 1, 3]]), "puzzle_indices.npy .* ascending from 0 to 6"),
    "groups": (set_array("group_indices", lambda a: a + 1), "group_indices.npy .* ascending from 0 to 3"),
    "identifier": (set_array("puzzle_identifiers", lambda a: a + 1), "values below num_puzzle_identifiers 4"),
    "count": (set_array("puzzle_identifiers", lambda a: a[:0]), r"puzzle_identifiers.npy .* expected \[3\], one"),
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
def test_damaged_data_is_refused_by_name(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder / "train")
    with pytest.raises(InputError, match=message):
        open_dataset(folder, "train")


def test_pickled_arrays_are_refused(folder):
    np.save(folder / "train" / "all__inputs.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as a NumPy array"):
        open_dataset(folder, "train")


def test_a_data_set_without_examples_is_refused(folder):
    for name, end in (("inputs", 0), ("labels", 0), ("puzzle_indices", 1), ("group_indices", 1)):
        set_array(name, lambda a, end=end: a[:end])(folder / "train")
    set_array("puzzle_identifiers", lambda a: a[:0])(folder / "train")
    with pytest.raises(InputError, match="holds no examples; build the data set again"):
        open_dataset(folder, "train")


def test_a_file_is_unchanged_after_an_error(tmp_path):
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


def test_a_folder_is_unchanged_after_an_error(tmp_path):
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

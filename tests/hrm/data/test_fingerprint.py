"""Different puzzles have different fingerprints; the same puzzles stored in another dtype have the same one."""

import shutil

import numpy as np
import pytest

from hrm.data import fingerprint as module
from hrm.data.fingerprint import fingerprint, names_fingerprint
from hrm.data.format import SetBuilder, open_dataset, write_dataset


@pytest.fixture
def folder(tmp_path):
    builder, rng = SetBuilder(), np.random.default_rng(0)
    builder.add_puzzles(rng.integers(1, 5, (600, 9)), rng.integers(1, 5, (600, 9)), per_group=2)
    write_dataset(tmp_path / "data", {"train": {"all": builder}}, vocab_size=5, seq_len=9)
    return tmp_path / "data"


def changed(folder, name, change):
    other = folder.with_name("other")
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(folder, other)
    array = np.load(other / f"train/all__{name}.npy")
    np.save(other / f"train/all__{name}.npy", change(array))
    return fingerprint(open_dataset(other, "train"))


def with_one_change(array):
    array = array.copy()
    array.flat[array.size // 2] = array.flat[array.size // 2] % 4 + 1
    return array


def test_every_value_changes_the_fingerprint(folder):
    digest = fingerprint(open_dataset(folder, "train"))
    assert digest == fingerprint(open_dataset(folder, "train")) and len(digest) == 32
    for name in ("inputs", "labels"):
        assert changed(folder, name, with_one_change) != digest
        assert changed(folder, name, lambda array: array[::-1]) != digest
        assert changed(folder, name, lambda array: array.astype(np.int64)) == digest
    assert changed(folder, "group_indices", lambda array: np.r_[array[:-2], array[-1]]) != digest
    assert changed(folder, "puzzle_indices", lambda array: array.astype(np.uint16)) == digest


def test_blocks_are_read_of_many_examples(folder, monkeypatch):
    monkeypatch.setattr(module, "_VALUES", 9 * 2 * 64)  # a row in each block
    digest = fingerprint(open_dataset(folder, "train"))
    assert changed(folder, "inputs", lambda array: np.random.default_rng(1).permutation(array)) != digest
    assert changed(folder, "labels", lambda array: array[::-1]) != digest
    assert changed(folder, "inputs", lambda array: array.astype(np.int16)) == digest


def test_names_have_a_fingerprint_of_their_values(folder):
    dataset = open_dataset(folder, "train")
    digest = names_fingerprint(dataset)
    (folder / "identifiers.json").write_text('["<blank>" ]\n')
    assert names_fingerprint(dataset) == digest
    (folder / "identifiers.json").write_text('["<blank>", "a"]')
    assert names_fingerprint(dataset) != digest
    (folder / "identifiers.json").unlink()
    assert names_fingerprint(dataset) is None

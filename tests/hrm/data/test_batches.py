"""Batches: which examples are drawn, in which order, by which process."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from hrm.data.batches import TrainingSampler, evaluation_batches
from hrm.data.format import PuzzleDataset, SetBuilder, open_dataset, write_dataset
from hrm.errors import InputError

SEQ_LEN = 4


def example(number: int) -> np.ndarray:
    """Tokens that encode the example's number: three decimal digits from the second token on, digit d as d + 1."""
    return np.array([1, number // 100 % 10 + 1, number // 10 % 10 + 1, number % 10 + 1])


def numbers_of(inputs: torch.Tensor) -> list[int]:
    return [int((row[1] - 1) * 100 + (row[2] - 1) * 10 + row[3] - 1) for row in inputs]


def build(folder, sets: dict[str, list[list[int]]]) -> PuzzleDataset:
    """A data set with ``sets``: groups of puzzles, each given as its number of examples; all are numbered in order."""
    builders, number, puzzle = {}, 0, 0
    for name, groups in sets.items():
        builder = builders[name] = SetBuilder()
        for group in groups:
            for size in group:
                for _ in range(size):
                    builder.add_example(example(number), np.array([number % 3, 1, 0, 5]))
                    number += 1
                builder.end_puzzle(puzzle)
                puzzle += 1
            builder.end_group()
    names = [str(i) for i in range(puzzle + 1)]
    write_dataset(folder, {"train": builders}, vocab_size=11, seq_len=SEQ_LEN, identifiers=names)
    return open_dataset(folder, "train")


def puzzle_of(dataset: PuzzleDataset) -> list[int]:
    """The puzzle of each example."""
    sizes = np.concatenate([np.diff(one.puzzle_indices) for one in dataset.sets])
    return np.repeat(np.arange(len(sizes)), sizes).tolist()


def test_an_epoch_visits_each_group_once_with_all_examples_of_one_puzzle(tmp_path):
    groups = [[2, 2, 2]] * 5 + [[2]] * 3
    dataset = build(tmp_path / "d", {"all": groups})
    group_of_puzzle = np.repeat(np.arange(8), [len(group) for group in groups])
    puzzles = puzzle_of(dataset)
    sampler = TrainingSampler(dataset, 16, seed=1)  # a batch is an epoch: 8 groups of one puzzle of two examples
    orders, chosen = set(), Counter()
    for epoch in range(60):
        batch = sampler.next()
        assert sampler.state == {"epoch": epoch, "position": 8}
        drawn = [puzzles[number] for number in numbers_of(batch["inputs"])]
        assert batch["puzzle_identifiers"].tolist() == drawn  # (puzzle i has identifier i)
        assert drawn[::2] == drawn[1::2] and len(set(numbers_of(batch["inputs"]))) == 16  # whole puzzles
        visited = [int(group_of_puzzle[puzzle]) for puzzle in drawn[::2]]
        assert sorted(visited) == list(range(8))
        orders.add(tuple(visited))
        chosen.update(drawn[::2])
    assert len(orders) > 55  # random order
    assert all(8 <= chosen[puzzle] <= 34 for puzzle in range(15))  # each of three with probability 1/3: 20 +- 3.7
    assert all(chosen[puzzle] == 60 for puzzle in range(15, 18))


def test_the_puzzle_that_fills_the_batch_gives_a_random_subset(tmp_path):
    dataset = build(tmp_path / "d", {"all": [[6]] * 4})
    puzzles = puzzle_of(dataset)
    sampler, seen = TrainingSampler(dataset, 8, seed=0), Counter()
    for _ in range(100):
        numbers = numbers_of(sampler.next()["inputs"])
        drawn = [puzzles[number] for number in numbers]
        assert len(set(drawn[:6])) == 1 and sorted(numbers[:6]) == list(range(numbers[0], numbers[0] + 6))
        assert drawn[6] == drawn[7] != drawn[0] and numbers[6] != numbers[7]  # without replacement
        seen.update(number % 6 for number in numbers[6:])
    assert set(seen) == set(range(6)) and all(15 <= count <= 55 for count in seen.values())  # 33 +- 5
    assert sampler.state == {"epoch": 49, "position": 4}  # the rest of a cut puzzle is dropped: two batches per epoch


def test_a_puzzle_larger_than_the_batch_is_cut(tmp_path):
    sampler = TrainingSampler(build(tmp_path / "d", {"all": [[9]]}), 4)
    batches = [numbers_of(sampler.next()["inputs"]) for _ in range(20)]
    assert all(len(set(batch)) == 4 for batch in batches)
    assert set().union(*batches) == set(range(9))


def test_batches_run_through_epochs_and_nothing_is_left_out(tmp_path):
    dataset = build(tmp_path / "d", {"all": [[1]] * 7})
    sampler = TrainingSampler(dataset, 5, seed=2)
    drawn = [number for _ in range(7) for number in numbers_of(sampler.next()["inputs"])]
    for epoch in range(5):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == list(range(7))
    small = TrainingSampler(dataset, 16, seed=2)  # more rows than an epoch has: the same stream
    assert numbers_of(small.next()["inputs"]) + numbers_of(small.next()["inputs"]) == drawn[:32]


def test_sets_are_one_pool_and_labels_are_translated(tmp_path):
    dataset = build(tmp_path / "d", {"a": [[1], [2]], "b": [[1]], "c": [[3, 3]]})
    sampler = TrainingSampler(dataset, 14, seed=0)
    batch = sampler.next()
    assert {tensor.dtype for tensor in batch.values()} == {torch.int32}
    puzzles = puzzle_of(dataset)
    drawn = numbers_of(batch["inputs"])
    assert set(drawn) <= set(range(10)) and {0, 1, 2, 3} <= set(drawn) and len(set(drawn) & set(range(4, 10))) in (3, 6)
    for number, labels, identifier in zip(drawn, batch["labels"], batch["puzzle_identifiers"], strict=True):
        assert labels.tolist() == [number % 3 or -100, 1, -100, 5]
        assert identifier == puzzles[number]


def test_the_same_draw_from_a_saved_state_and_on_every_rank(tmp_path):
    dataset = build(tmp_path / "d", {"all": [[3, 2], [1], [5], [2, 2, 2]] * 5})
    whole = TrainingSampler(dataset, 12, seed=7)
    states, batches = [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(whole.state)))
        batches.append(whole.next())
    resumed = TrainingSampler(dataset, 12, seed=7)
    resumed.state = states[5]
    ranks = [TrainingSampler(dataset, 12, seed=7, rank=rank, world_size=3) for rank in range(3)]
    for index, batch in enumerate(batches):
        parts = [sampler.next() for sampler in ranks]
        for name in batch:
            assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
        if index >= 5:
            assert all(torch.equal(again, batch[name]) for name, again in resumed.next().items())
    other = TrainingSampler(dataset, 12, seed=8).next()
    assert not torch.equal(other["inputs"], batches[0]["inputs"])


def test_groups_and_puzzles_without_examples_are_left_out(tmp_path):
    dataset = build(tmp_path / "d", {"all": [[0, 2], [0], [], [2, 0], [1]]})
    sampler = TrainingSampler(dataset, 5)
    assert sampler.num_groups == 3
    for _ in range(4):
        assert sorted(numbers_of(sampler.next()["inputs"])) == list(range(5))
    (numbers, batch), *_ = evaluation_batches(dataset, 5)
    assert batch["puzzle_identifiers"].tolist() == [1, 1, 3, 3, 5]


@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_is_in_order_and_pads_the_last_batch(tmp_path, world_size):
    dataset = build(tmp_path / "d", {"a": [[2, 1]], "b": [[4], [2]]})
    seen, sizes = {}, []
    for rank in range(world_size):
        batches = list(evaluation_batches(dataset, 4, rank, world_size))
        sizes.append(len(batches))
        for numbers, batch in batches:
            n = len(numbers)
            assert batch["inputs"].shape == (4 // world_size, SEQ_LEN)
            assert numbers_of(batch["inputs"][:n]) == numbers.tolist()
            assert (batch["inputs"][n:] == 0).all() and (batch["labels"][n:] == -100).all()
            assert (batch["puzzle_identifiers"][n:] == 0).all()
            for row in range(n):
                assert batch["labels"][row].tolist() == [int(numbers[row]) % 3 or -100, 1, -100, 5]
                seen[int(numbers[row])] = int(batch["puzzle_identifiers"][row])
    assert seen == dict(enumerate(puzzle_of(dataset))) and set(sizes) == {3}
    assert [len(numbers) for numbers, _ in evaluation_batches(dataset, 4, max_examples=6)] == [4, 2]


def test_bad_arguments_and_tokens_are_refused(tmp_path):
    dataset = build(tmp_path / "d", {"all": [[1]] * 4})
    with pytest.raises(InputError, match="batch size 10 does not divide among 4 processes; give 8 or 12"):
        TrainingSampler(dataset, 10, world_size=4)
    with pytest.raises(InputError, match="batch size 2 does not divide among 4 processes; give 4,"):
        next(evaluation_batches(dataset, 2, world_size=4))
    with pytest.raises(InputError, match="position 5 of epoch 0 does not exist among 4 groups"):
        TrainingSampler(dataset, 4).state = {"epoch": 0, "position": 5}
    np.save(tmp_path / "d/train/all__inputs.npy", np.full((4, SEQ_LEN), 11, np.uint8))
    with pytest.raises(InputError, match="the inputs hold token 11, expected 0 to 10"):
        TrainingSampler(open_dataset(tmp_path / "d", "train"), 4).next()


@pytest.mark.parametrize("name", ["inputs", "labels"])
@pytest.mark.parametrize("token", [2**32 + 1, 2**40, -5, -(2**32)])
def test_a_token_beyond_32_bits_or_below_0_is_refused(tmp_path, name, token):
    build(tmp_path / "d", {"all": [[1]] * 4})
    np.save(tmp_path / f"d/train/all__{name}.npy", np.full((4, SEQ_LEN), token, np.int64))
    with pytest.raises(InputError, match=f"the {name} hold token {token}, expected 0 to 10"):
        TrainingSampler(open_dataset(tmp_path / "d", "train"), 4).next()


def test_ignored_labels_may_be_any_number(tmp_path):
    for ignored, dtype in ((200, np.uint8), (-1, np.int16), (-100, np.int64)):
        build(tmp_path / "d" / str(ignored), {"all": [[1]] * 4})
        path = tmp_path / "d" / str(ignored) / "train"
        values = json.loads((path / "dataset.json").read_text()) | {"ignore_label_id": ignored}
        (path / "dataset.json").write_text(json.dumps(values))
        np.save(path / "all__labels.npy", np.array([[ignored, 1, 0, 5]] * 4, dtype))
        batch = TrainingSampler(open_dataset(path.parent, "train"), 4).next()
        assert batch["labels"].tolist() == [[-100, 1, 0, 5]] * 4 and batch["labels"].dtype == torch.int32

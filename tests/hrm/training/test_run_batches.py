"""The batches of a run: mixed from two data sets, and changed by symmetries on the fly."""

import numpy as np
import pytest
import torch
from runs import assert_same, contents

from hrm.data.batches import TrainingSampler
from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.data.maze import Maze
from hrm.data.maze import generate as generate_mazes
from hrm.data.puzzles import Puzzles, row_keys
from hrm.data.sudoku import Difficulty, Sudoku, generate
from hrm.errors import InputError
from hrm.training.config import load_config
from hrm.training.distributed import World
from hrm.training.run_batches import Mixture
from hrm.training.run_data import RunData
from hrm.training.trainer import train


def write(folder, train_puzzles: Puzzles, test_puzzles: Puzzles, task) -> None:
    splits = {}
    for name, puzzles in (("train", train_puzzles), ("test", test_puzzles)):
        splits[name] = {"all": SetBuilder()}
        splits[name]["all"].add_puzzles(puzzles.inputs, puzzles.labels)
    write_dataset(folder, splits, vocab_size=task.vocab_size, seq_len=task.seq_len, task=task.name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two data folders of 4 x 4 Sudokus: ``easy`` with 12 clues, ``hard`` with the fewest."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    easy, hard = generate(20, 4, rng, Difficulty(extra_clues=8)), generate(20, 4, rng)
    everything = np.arange(20)
    write(folder / "easy", easy.take(everything[:12]), easy.take(everything[12:]), Sudoku(4))
    write(folder / "hard", hard.take(everything[:12]), hard.take(everything[12:]), Sudoku(4))
    return folder


@pytest.fixture
def batches(configure, folders):
    """A function that opens the batches of a run, of one process or of one of several."""

    def open_(world: World | None = None, **changes):
        config = configure(**({"data": folders / "easy"} | changes))
        return RunData.open(config, world or World(0, 1, torch.device("cpu"))).batches

    return open_


def keys(dataset) -> set[int]:
    return set(row_keys(np.asarray(dataset.sets[0].inputs)).tolist())


def test_augmented_puzzles_are_new_ones_with_their_solutions(batches, folders):
    one, plain = batches(augment=True), batches()
    originals, held_out = (keys(open_dataset(folders / "easy", split)) for split in ("train", "test"))
    seen, labelled = set(), Sudoku(4)
    for step in range(1, 101):
        batch, original = one.next(step), plain.next(step)
        inputs, labels = batch["inputs"].numpy(), batch["labels"].numpy()
        assert labelled.solves(inputs, labels).all() and ((inputs == labels) | (inputs == 1)).all()
        assert torch.equal((batch["inputs"] > 1).sum(1), (original["inputs"] > 1).sum(1))  # the same number of clues
        seen |= set(row_keys(inputs).tolist())
    assert len(seen) > 700 and not seen & (held_out - originals)
    # the same step, the same batch; and nothing but the position is kept
    again = batches(augment=True)
    again.state = one.state
    batch, other = one.next(101), again.next(101)
    assert all(torch.equal(tensor, other[name]) for name, tensor in batch.items())


def test_a_puzzle_of_the_test_split_keeps_its_original(configure, tmp_path):
    """All symmetric puzzles of the only training puzzle are in the test split."""
    puzzle = generate(1, 4, np.random.default_rng(0))
    task, rng = Sudoku(4), np.random.default_rng(1)
    many = puzzle.take(np.zeros(20_000, int))
    changed = task.symmetries(20_000, rng)
    variants = Puzzles(changed.apply(many.inputs), changed.apply(many.labels), many.ratings, many.lines)
    write(tmp_path / "all", puzzle, variants, task)
    batches = RunData.open(configure(data=tmp_path / "all", augment=True), World(0, 1, torch.device("cpu"))).batches
    for step in range(1, 20):
        assert (batches.next(step)["inputs"].numpy() == puzzle.inputs).all()


def test_mazes_turn_and_reflect(tmp_path, configure):
    mazes = generate_mazes(6, 7, np.random.default_rng(0))
    write(tmp_path / "maze", mazes, mazes, Maze(7))
    (tmp_path / "maze/test").rename(tmp_path / "maze/other")
    batches = RunData.open(configure(data=tmp_path / "maze", augment=True), World(0, 1, torch.device("cpu"))).batches
    drawn = [batches.next(step) for step in range(1, 60)]
    inputs, labels = (torch.cat([batch[name] for batch in drawn]).numpy() for name in ("inputs", "labels"))
    assert Maze(7).solves(inputs, labels).all() and len(np.unique(inputs, axis=0)) == 6 * 8


def test_labels_that_are_ignored_only_move():
    changed = Sudoku(4).symmetries(3, np.random.default_rng(0))
    labels = np.tile(np.array([-100, 2, 3, 4] * 4, np.int32), (3, 1))
    moved = changed.apply_to_labels(labels)
    assert moved.dtype == np.int32 and ((moved == -100).sum(1) == 4).all()
    assert (changed.apply(np.maximum(labels, 0))[moved > 0] == moved[moved > 0]).all()


def test_the_share_of_the_second_data_set_follows_its_schedule(batches, folders):
    hard, count = keys(open_dataset(folders / "hard", "train")), []
    schedule = [[10, 0.0], [30, 1.0]]
    mixed = batches(mix_data=folders / "hard", mix_share=schedule)
    places = np.zeros(8)
    for step in range(1, 41):
        batch = mixed.next(step)
        from_hard = np.isin(row_keys(batch["inputs"].numpy()), list(hard))
        assert Sudoku(4).solves(batch["inputs"].numpy(), batch["labels"].numpy()).all()
        count.append(int(from_hard.sum()))
        places += from_hard if 10 < step < 30 else 0
    assert count[:10] == [0] * 10 and count[30:] == [8] * 10
    expected = 8 * (np.arange(11, 30) - 10) / 20
    assert (np.abs(np.array(count[10:29]) - expected) < 1).all()  # rounded up or down
    assert (places > 3).all()  # in every row of the batch
    constant = batches(mix_data=folders / "hard", mix_share=0.3)
    rows = [np.isin(row_keys(constant.next(step)["inputs"].numpy()), list(hard)).sum() for step in range(1, 301)]
    assert np.mean(rows) == pytest.approx(2.4, abs=0.1) and set(rows) == {2, 3}


def test_processes_share_the_batches_of_one(batches, folders):
    changes = {"augment": True, "mix_data": folders / "hard", "mix_share": 0.4}
    whole = batches(**changes)
    parts = [batches(World(rank, 2, torch.device("cpu")), **changes) for rank in range(2)]
    for step in range(1, 6):
        batch, halves = whole.next(step), [part.next(step) for part in parts]
        assert all(torch.equal(tensor, torch.cat([half[name] for half in halves])) for name, tensor in batch.items())
    assert whole.state == parts[0].state == parts[1].state and "mix" in whole.state


def test_a_run_on_mixed_and_augmented_data_resumes_bit_for_bit(configure, cpu, folders):
    changes = {"data": folders / "easy", "mix_data": folders / "hard", "mix_share": [[0.01, 0.2], [6, 1.0]]}
    changes |= {"augment": True, "arch": {"puzzle_emb_ndim": 0}}
    whole = train(configure("whole", max_steps=6, **changes), cpu)
    train(configure("parts", max_steps=3, **changes), cpu)
    parts = train(configure("parts", max_steps=6, resume=True, **changes), cpu)
    assert_same(contents(whole.checkpoint), contents(parts.checkpoint))
    changes["mix_data"] = folders / "easy"
    with pytest.raises(InputError, match="does not fit this run: data mix_data was"):
        train(configure("parts", max_steps=7, resume=True, **changes), cpu)


def test_data_that_do_not_mix_and_tasks_without_symmetries_are_refused(configure, cpu, data, folders, tmp_path):
    with pytest.raises(InputError, match=r"mix_data .*easy has seq_len 16, and .*data 9; they do not mix"):
        train(configure(mix_data=folders / "easy"), cpu)
    with pytest.raises(InputError, match="no known task has vocabulary 5"):
        train(configure(augment=True), cpu)
    arc = np.full((1, 900), 2, np.uint8)
    puzzles = Puzzles(arc, arc, np.zeros(1, np.int64), np.zeros(1, np.int64))
    builder = SetBuilder()
    builder.add_puzzles(puzzles.inputs, puzzles.labels)
    write_dataset(tmp_path / "arc", {"train": {"all": builder}}, vocab_size=12, seq_len=900, task="arc")
    with pytest.raises(InputError, match="augment: task arc has no symmetries that can be applied on the fly"):
        train(configure(data=tmp_path / "arc", augment=True), cpu)
    sampler = TrainingSampler(open_dataset(folders / "hard", "train"), 4)
    with pytest.raises(InputError, match=r"mix_share: the moments are steps \[50, 20\], expected .* ascending"):
        Mixture(sampler, ((0.5, 0.0), (20, 1.0)), 100)
    for wrong in ("mix_share=2", "mix_share=[[0.5, 2]]", "mix_share=[[1.5, 0.5]]"):
        with pytest.raises(InputError, match="mix_share"):
            load_config("demo", ["data=x", wrong])
    assert load_config("demo", ["data=x", "mix_data=~/y", "mix_share=[[0.5, 0], [900, 1]]"]).mix_share == (
        (0.5, 0.0),
        (900, 1.0),
    )

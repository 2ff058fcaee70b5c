import math

import numpy as np
import pytest
import tiny_sudoku
import torch
from torch import nn

from hrm import HRM, HRMConfig, InputError
from hrm.data.arc import Arc, ArcTask, build, crop
from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.files import read_json
from hrm.inference.evaluate import evaluate
from hrm.model import Carry

SEQ_LEN, VOCAB, STEPS, EXAMPLES, UNLABELLED = 16, 6, 4, 13, 5


def tiny(**changes):
    sizes = {
        "hidden_size": 32,
        "num_heads": 2,
        "H_layers": 1,
        "L_layers": 1,
        "H_cycles": 1,
        "L_cycles": 1,
        "expansion": 1,
    }
    values = {
        "seq_len": SEQ_LEN,
        "vocab_size": VOCAB,
        "num_puzzle_identifiers": 4,
        "puzzle_emb_ndim": 32,
        "halt_max_steps": STEPS,
    }
    torch.manual_seed(3)
    model = HRM(HRMConfig(**sizes, **{**values, **changes}, forward_dtype="float32"))
    with torch.no_grad():  # makes rows halt at different segments, and puzzles differ
        model.inner.q_head.weight.normal_()
        model.inner.q_head.bias.copy_(torch.tensor([-0.5, 0.5]))
        model.inner.puzzle_emb.weights.normal_()
    return model


def run_alone(model, inputs, identifier, steps):
    """One row in a batch of its own: per segment the logits (float64) and the two Q values."""
    batch = {"inputs": torch.tensor(inputs[None]).int(), "puzzle_identifiers": torch.tensor([identifier]).int()}
    model.eval()
    carry, outputs = model.initial_carry(batch), []
    with torch.no_grad():
        for _ in range(steps):
            carry, out = model(carry, batch)
            outputs.append(
                (out["logits"][0].double().numpy(), out["q_halt_logits"].item(), out["q_continue_logits"].item())
            )
    return outputs


def stablemax(logits, label):
    s = np.where(logits >= 0, logits + 1, 1 / (1 - logits))
    return -math.log(s[label] / s.sum())


def by_hand(model, inputs, labels, identifiers, steps):
    """The metrics, row by row; labels 0 are ignored."""
    rows = []
    for x, y, identifier in zip(inputs, labels, identifiers):
        outputs = run_alone(model, x, identifier, steps)
        if not y.any():
            continue
        early = next((i for i, (_, halt, go_on) in enumerate(outputs) if halt > go_on), steps - 1)
        logits, q_halt, _ = outputs[-1]
        at = np.flatnonzero(y)
        right = logits.argmax(-1)[at] == y[at]
        rows.append(
            {
                "exact_accuracy": right.all(),
                "accuracy": right.mean(),
                "lm_loss": np.mean([stablemax(logits[i], y[i]) for i in at]),
                "q_halt_accuracy": (q_halt >= 0) == right.all(),
                "steps": steps,
                "early_exact_accuracy": (outputs[early][0].argmax(-1)[at] == y[at]).all(),
                "early_steps": early + 1,
            }
        )
    return {"count": len(rows), **{name: np.mean([row[name] for row in rows]) for name in rows[0]}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two sets, and its arrays; some labels are answers of the tiny model, early or last ones."""
    random = np.random.default_rng(0)
    model = tiny()
    inputs = random.integers(1, VOCAB, (EXAMPLES, SEQ_LEN))
    identifiers = np.array([0, 1, 1, 2, 2, 3, 3, 3, 1, 2, 2, 0, 3])  # by example; puzzles are runs of them
    labels = random.integers(0, VOCAB, (EXAMPLES, SEQ_LEN))
    for row in range(EXAMPLES):
        outputs = run_alone(model, inputs[row], identifiers[row], STEPS)
        if row in (1, 2, 4, 7):
            labels[row] = outputs[-1][0].argmax(-1)
        elif row == 8:  # halts after its first segment
            labels[row] = outputs[0][0].argmax(-1)
        labels[row, random.random(SEQ_LEN) < 0.3] = 0
    labels[UNLABELLED] = 0
    sets = {"first": SetBuilder(), "second": SetBuilder()}
    for name, rows in (("first", range(8)), ("second", range(8, EXAMPLES))):
        for row in rows:
            sets[name].add_example(inputs[row], labels[row])
            if row + 1 not in rows or identifiers[row + 1] != identifiers[row]:
                sets[name].end_puzzle(int(identifiers[row]))
                sets[name].end_group()
    folder = tmp_path_factory.mktemp("data") / "tiny"
    names = ["<blank>", "a", "b", "c"]
    write_dataset(folder, {"test": sets}, vocab_size=VOCAB, seq_len=SEQ_LEN, identifiers=names)
    return folder, inputs, labels, identifiers


def assert_same(metrics, expected):
    values = metrics.as_dict()
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_metrics_are_those_of_single_rows(data, batch_size):
    folder, *arrays = data
    expected = by_hand(tiny(), *arrays, STEPS)
    assert expected["count"] == EXAMPLES - 1
    assert 0 < expected["exact_accuracy"] < 1  # the data distinguish the metrics
    assert (
        len({expected[name] for name in ("exact_accuracy", "early_exact_accuracy", "accuracy", "q_halt_accuracy")}) == 4
    )
    assert 1 < expected["early_steps"] < STEPS
    assert_same(evaluate(tiny(), open_dataset(folder, "test"), batch_size=batch_size), expected)


@pytest.mark.parametrize("halt", ["fixed", "q"])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_progress_ends_at_the_number_of_examples(data, told, halt, batch_size):
    evaluate(tiny(), open_dataset(data[0], "test"), batch_size=batch_size, halt=halt, progress=told)
    assert told.ends == {"evaluating": (EXAMPLES, EXAMPLES)}


def test_more_segments_than_in_training(data):
    folder, *arrays = data
    expected = by_hand(tiny(halt_max_steps=7), *arrays, 7)
    assert_same(evaluate(tiny(), open_dataset(folder, "test"), batch_size=4, max_steps=7), expected)


def test_max_examples_takes_the_first(data):
    folder, *arrays = data
    expected = by_hand(tiny(), *(array[:7] for array in arrays), STEPS)
    assert_same(evaluate(tiny(), open_dataset(folder, "test"), batch_size=3, max_examples=7), expected)


def test_predictions_file(data, tmp_path):
    folder, inputs, labels, identifiers = data
    model = tiny()
    evaluate(model, open_dataset(folder, "test"), batch_size=4, max_examples=11, out=tmp_path / "out")
    saved = np.load(tmp_path / "out" / "predictions.npz")
    outputs = [run_alone(model, x, identifier, STEPS) for x, identifier in zip(inputs[:11], identifiers)]
    early = [next((i + 1 for i, (_, halt, go_on) in enumerate(one) if halt > go_on), STEPS) for one in outputs]
    np.testing.assert_array_equal(saved["inputs"], inputs[:11])
    np.testing.assert_array_equal(saved["labels"], labels[:11])
    np.testing.assert_array_equal(saved["puzzle_identifiers"], identifiers[:11])
    np.testing.assert_array_equal(saved["predictions"], [one[-1][0].argmax(-1) for one in outputs])
    np.testing.assert_array_equal(saved["early_steps"], early)
    np.testing.assert_allclose(saved["q_halt"], [one[-1][1] for one in outputs], rtol=1e-5, atol=1e-6)
    assert saved["predictions"].dtype == np.uint8
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.npz"]


def test_without_labels_the_metrics_are_nan(tmp_path):
    builder = SetBuilder()
    builder.add_example(np.ones(SEQ_LEN), np.zeros(SEQ_LEN))
    builder.end_puzzle()
    builder.end_group()
    write_dataset(
        tmp_path / "d", {"test": {"all": builder}}, vocab_size=VOCAB, seq_len=SEQ_LEN, identifiers=list("abcd")
    )
    metrics = evaluate(tiny(), open_dataset(tmp_path / "d", "test"), batch_size=1)
    assert metrics.count == 0
    assert math.isnan(metrics.exact_accuracy)


def test_the_mode_is_restored(data):
    folder, *_ = data
    model = tiny().train()
    before = evaluate(model, open_dataset(folder, "test"), batch_size=8)
    assert model.training and model.inner.H_level.training
    assert_same(
        before,
        evaluate(model.eval(), open_dataset(folder, "test"), batch_size=8).as_dict()
        | {"puzzles_per_second": before.puzzles_per_second},
    )
    assert not model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 25}, "seq_len 16 and the checkpoint 25"),
        ({"vocab_size": 8}, "vocab_size 6 and the checkpoint 8"),
        (
            {"num_puzzle_identifiers": 3},
            "4 puzzle identifiers and the checkpoint's puzzle_emb 3 rows.*--puzzle-emb keep",
        ),
    ],
)
def test_data_of_another_model(data, changes, message):
    with pytest.raises(InputError, match=message):
        evaluate(tiny(**changes), open_dataset(data[0], "test"), batch_size=8)


@pytest.mark.parametrize("name", ["batch_size", "max_steps", "max_examples"])
def test_invalid_numbers(data, name):
    with pytest.raises(InputError, match=f"{name} is 0, expected 1 or more"):
        evaluate(tiny(), open_dataset(data[0], "test"), **{"batch_size": 8, name: 0})


def test_early_halting_measures_what_the_published_protocol_predicts(tmp_path):
    tiny_sudoku.write_data(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data", "test")
    fixed = evaluate(tiny_sudoku.tiny(), dataset, batch_size=20, out=tmp_path / "fixed")
    early = evaluate(tiny_sudoku.tiny(), dataset, batch_size=7, halt="q", out=tmp_path / "q")
    assert 0 < fixed.early_exact_accuracy < 1 and 1 < fixed.early_steps < tiny_sudoku.STEPS
    assert early.exact_accuracy == pytest.approx(fixed.early_exact_accuracy)
    assert (early.steps, early.count) == (pytest.approx(fixed.early_steps), 20)
    assert early.lm_loss is None and "lm_loss" not in early.as_dict()
    saved, of_fixed = (np.load(tmp_path / name / "predictions.npz") for name in ("q", "fixed"))
    np.testing.assert_array_equal(saved["early_steps"], of_fixed["early_steps"])
    np.testing.assert_array_equal(saved["inputs"], of_fixed["inputs"])


class Oracle(nn.Module):
    """Has the given answers and q_halt for the given inputs; answers other inputs with the input."""

    folder = None

    def __init__(self, config, answers, q_halt):
        super().__init__()
        self.config, self.answers, self.q_halt = config, answers, q_halt
        self.weight = nn.Parameter(torch.zeros(1))

    def initial_carry(self, batch):
        rows = len(batch["inputs"])
        nothing = torch.zeros(rows)
        return Carry(nothing, nothing, nothing.int(), torch.ones(rows, dtype=torch.bool), batch)

    def forward(self, carry, batch):
        tokens = torch.stack(
            [self.answers.get(x.numpy().astype(np.uint8).tobytes(), x).long() for x in batch["inputs"]]
        )
        q = torch.tensor([self.q_halt.get(x.numpy().astype(np.uint8).tobytes(), -1.0) for x in batch["inputs"]])
        outputs = {
            "logits": nn.functional.one_hot(tokens, self.config.vocab_size).float(),
            "q_halt_logits": q,
            "q_continue_logits": torch.zeros_like(q),
        }
        return Carry(carry.z_H, carry.z_L, carry.steps + 1, carry.halted, batch), outputs


def test_arc_votes(tmp_path):
    grids = [np.full((2, 2 + task), task + 1, np.uint8) for task in range(3)]
    swapped = [np.where(np.arange(grid.size).reshape(grid.shape) % 2, 0, grid) for grid in grids]
    tasks = [
        ArcTask(f"task{number}", "evaluation", ((grid, other),), ((grid, other),))
        for number, (grid, other) in enumerate(zip(grids, swapped))
    ]
    folder = tmp_path / "arc"
    build(folder, tasks, test_subsets=["evaluation"], augment=3)
    dataset = open_dataset(folder, "test")
    one = dataset.sets[0]
    starts, identifiers = one.puzzle_indices[:-1], dataset.identifiers()
    names = {identifiers[identifier]: start for identifier, start in zip(one.puzzle_identifiers, starts)}
    # Task 0 is right in all variants, task 1 only without augmentation, with the highest q_halt, task 2 never.
    answers, q_halt = {}, {}
    for name, row in names.items():
        key = np.asarray(one.inputs[row]).tobytes()
        if name.startswith("task0") or name == "task1":
            answers[key], q_halt[key] = torch.tensor(np.asarray(one.labels[row])), 2.0
    config = HRMConfig(seq_len=900, vocab_size=12, num_puzzle_identifiers=len(identifiers), halt_max_steps=1)
    metrics = evaluate(Oracle(config, answers, q_halt), dataset, batch_size=5, out=tmp_path / "out")
    variants_of_1 = sum(name.startswith("task1") for name in names)
    assert variants_of_1 > 2  # the wrong answer has more votes
    assert metrics.as_dict()["ARC/pass@1"] == metrics.arc_pass[1]
    passes = {k: metrics.arc_pass[k] for k in (1, 2, 1000)}
    assert passes == pytest.approx({1: 1 / 3, 2: 2 / 3, 1000: 2 / 3})
    submission = read_json(tmp_path / "out" / "submission.json")
    assert submission["task0"] == [{"attempt_1": swapped[0].tolist(), "attempt_2": swapped[0].tolist()}]
    assert submission["task1"] == [{"attempt_1": grids[1].tolist(), "attempt_2": swapped[1].tolist()}]
    assert submission["task2"] == [{"attempt_1": grids[2].tolist(), "attempt_2": grids[2].tolist()}]
    right = sum(name.startswith("task0") for name in names) + 1
    assert metrics.exact_accuracy == pytest.approx(right / len(names))
    saved = np.load(tmp_path / "out" / "predictions.npz")
    np.testing.assert_array_equal(crop(saved["predictions"][names["task1"]]), swapped[1])
    (folder / "identifiers.json").write_text('["<blank>"]')
    with pytest.raises(InputError, match="identifiers.json has 1 names and the examples the puzzle identifier"):
        evaluate(Oracle(config, answers, q_halt), dataset, batch_size=5)
    part = evaluate(Oracle(config, answers, q_halt), dataset, batch_size=5, max_examples=4)
    assert part.arc_pass is None and "ARC/pass@1" not in part.as_dict()
    assert Arc().seq_len == 900

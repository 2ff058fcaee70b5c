import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from hrm import HRM, HRMConfig, load, save
from hrm.analysis import BaselineRun, Trajectories, analyze, answers_by_segment, difficulty, write_report
from hrm.analysis.pictures import NAMES
from hrm.analysis.report import FILES, page
from hrm.analysis.run import _batch, _chosen
from hrm.data import task_of
from hrm.data.batches import evaluation_batches
from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.data.maze import generate as generate_mazes
from hrm.data.sudoku import generate
from hrm.inference.evaluate import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``data`` and ``model``: untrained, but its puzzles halt at different segments."""
    folder = tmp_path_factory.mktemp("analysis")
    splits = {}
    for seed, split in enumerate(("train", "test")):
        puzzles, builder = generate(30, 4, np.random.default_rng(seed)), SetBuilder()
        builder.add_puzzles(puzzles.inputs, puzzles.labels)
        splits[split] = {"all": builder}
    write_dataset(folder / "data", splits, vocab_size=6, seq_len=16, task="sudoku")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1, "halt_max_steps": 4}
    model = HRM(HRMConfig(seq_len=16, vocab_size=6, forward_dtype="float32", **sizes))
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
        model.inner.q_head.weight[1] = 0
        model.inner.q_head.bias.zero_()
        q_halt = answers_by_segment(model, open_dataset(folder / "data", "test"), max_steps=2).q_halt
        model.inner.q_head.bias[1] = float(np.median(q_halt))
    save(model, folder / "model", task="sudoku")
    return folder


def load_both(folder):
    return load(folder / "model"), open_dataset(folder / "data", "test")


def test_answers_match_the_published_evaluation(folder):
    model, dataset = load_both(folder)
    answers = answers_by_segment(model, dataset, slots=7)
    assert answers.tokens.shape == (4, 30, 16) and len(set(answers.halting_steps)) > 1
    for steps in (1, 4):
        expected = evaluate(model, dataset, batch_size=7, max_steps=steps)
        assert answers.tokens_right[steps - 1].mean() == pytest.approx(expected.accuracy)
        assert answers.right[steps - 1].mean() == expected.exact_accuracy
    assert answers.halting_steps.mean() == pytest.approx(expected.early_steps)
    assert answers.right_when_halting.mean() == expected.early_exact_accuracy
    trace = answers.trace(3)
    assert [frame.step for frame in trace] == list(range(1, answers.halting_steps[3] + 1))
    assert all(frame.q_halt <= frame.q_continue for frame in trace[:-1])


def test_difficulty_depends_on_the_task():
    four, nine = generate(6, 4, np.random.default_rng(0)), generate(4, 9, np.random.default_rng(0))
    name, values = difficulty(task_of(6, 16), four.inputs, four.labels)
    assert name == "cells to change" and values.tolist() == (four.inputs == 1).sum(1).tolist()
    assert difficulty(task_of(11, 81), nine.inputs, nine.labels)[1].tolist() == nine.ratings.tolist()
    mazes = generate_mazes(4, 9, np.random.default_rng(0))
    _, steps = difficulty(task_of(6, 81), mazes.inputs, mazes.labels)
    assert steps.tolist() == (mazes.ratings - 1).tolist()  # S and G are already in the maze


def test_the_shown_boards_span_the_halting_segments(folder):
    model, dataset = load_both(folder)
    answers = answers_by_segment(model, dataset)
    shown = _chosen(answers, 30, 6)
    assert len(set(shown.tolist())) == len(shown) <= 6
    steps = answers.halting_steps
    assert {steps.min(), steps.max()} <= set(steps[shown].tolist())


def test_only_the_analysed_examples_are_read(folder, tmp_path, monkeypatch):
    model, puzzles_4 = load(folder / "model"), generate(30, 4, np.random.default_rng(0))
    inputs, labels = np.tile(puzzles_4.inputs, (70, 1)), np.tile(puzzles_4.labels, (70, 1))
    labels[:1000:2] = 0  # without a label
    builder = SetBuilder()
    builder.add_puzzles(inputs, labels)
    write_dataset(tmp_path / "data", {"test": {"all": builder}}, vocab_size=6, seq_len=16, task="sudoku")
    batches = []

    def read(*arguments, **options):
        for numbers, batch in evaluation_batches(*arguments, **options):
            batches.append(len(numbers))
            yield numbers, batch

    monkeypatch.setattr("hrm.inference.examples.evaluation_batches", read)
    dataset = open_dataset(tmp_path / "data", "test")
    for puzzles, wanted in ((5, [1024]), (600, [1024, 1024])):
        batches.clear()
        assert torch.equal(
            _batch(dataset, puzzles, model)["inputs"], torch.from_numpy(inputs[labels[:, 0] > 0][:puzzles]).int()
        )
        assert batches == wanted


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "action")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_no_other_file(folder, tmp_path, told):
    model, dataset = load_both(folder)
    train, sizes = open_dataset(folder / "data", "train"), {"puzzles": 20, "boards": 3, "baseline_steps": 2}
    result = analyze(model, task_of(6, 16), dataset, train, **sizes, progress=told)
    assert len(told.ends) == 5 and {description: done for description, (done, _) in told.ends.items()} == {
        description: total for description, (_, total) in told.ends.items()
    }
    write_report(result, tmp_path, "<a model> & its data")
    boards = sorted(tmp_path.glob("board-*.gif"))
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, *(path.name for path in boards)}
    assert len(boards) == len(result.shown) and 1 <= len(boards) <= 3
    parser, text = _Page(), (tmp_path / "report.html").read_text()
    parser.feed(text)
    assert len(parser.sources) == 5 + len(boards) and all(one.startswith("data:image/") for one in parser.sources)
    assert not {"script", "link", "iframe"} & set(parser.tags) and "url(" not in text
    assert "<a model> & its data" in parser.text
    numbers = json.loads((tmp_path / "analysis.json").read_text())
    assert numbers["puzzles"] == 30 and numbers["states_of_puzzles"] == 20 and numbers["baseline_steps"] == 2
    assert sum(numbers["halting"]["histogram"]) == 30
    assert set(numbers["participation_ratio"]) == {"trained_z_H", "trained_z_L", "untrained_z_H", "untrained_z_L"}
    assert all(1 <= value <= 32 for value in numbers["participation_ratio"].values())
    assert len(numbers["residuals"]["z_L"]["residual"]) == 4 * 2 * 2
    assert len(numbers["baselines"]["recurrent"]["residual"]) == 4 * 2 * 3
    for board in boards:
        with Image.open(board) as animation:
            assert animation.n_frames >= 2
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(tmp_path / name) as picture:
                assert (
                    len(np.unique(np.asarray(picture.convert("L").resize((60, 30))))) > 10
                )  # the picture is not empty


@pytest.fixture(scope="module")
def analysis(folder):
    model, dataset = load_both(folder)
    return analyze(model, task_of(6, 16), dataset, puzzles=2, boards=2)


def test_hostile_text_is_escaped(analysis):
    """A title comes from a folder's name, the name of the difficulty from a task, the sizes from a file."""
    hostile = "<img src=x onerror='alert(1)'>\"&"
    changed = replace(analysis, difficulty_name=hostile, model=analysis.model | {"num_heads": hostile})
    parser, text = _Page(), page(changed, hostile, dict.fromkeys(NAMES, b""), [])
    parser.feed(text)
    assert "<img src=x" not in text and "onerror='" not in text
    assert sum(hostile in part for part in parser.text) == 4  # title, heading, difficulty, heads
    assert all(one.startswith("data:image/") for one in parser.sources)


def test_reprs_are_readable(analysis):
    answers, segments = analysis.answers, analysis.answers.halting_steps.mean()
    solved, halting = f"{answers.right[-1].mean():.2%}", f"{answers.right_when_halting.mean():.2%}"
    assert repr(answers) == (
        f"Answers(30 puzzles: {solved} solved after 4 segments, {halting} when halting by Q after {segments:.2f})"
    )
    high, low = (analysis.participation(True, level) for level in ("H", "L"))
    assert repr(analysis) == (
        f"Analysis(Sudoku(size=4), puzzles: 30, solved after 4 segments: {solved}, solved when halting by Q: "
        f"{halting}, mean segments until halting by Q: {segments:.2f}, participation ratio z_H / z_L: "
        f"{high:.1f} / {low:.1f})"
    )
    parser = _Page()
    parser.feed(analysis._repr_html_())
    assert parser.tags.count("tr") == 6 and {"Sudoku(size=4)", "30", solved} <= set(parser.text)
    assert repr(BaselineRun(np.ones(3), 0.5, 0.25)) == "BaselineRun(3 updates, loss 0.500, 25.0% solved)"
    paths = Trajectories(np.zeros((2, 5, 2)), np.array([0.5, 0.25]))
    assert repr(paths) == "Trajectories(2 puzzles, 5 updates, 75% of the variance)"


def test_a_model_without_variance_or_a_right_answer_is_analysed(folder):
    """All puzzles halt after one segment and are wrong; the states are those of one puzzle."""
    model, dataset = load_both(folder)
    with torch.no_grad():
        model.inner.q_head.bias.copy_(torch.tensor([99.0, 0.0]))
    result = analyze(model, task_of(6, 16), dataset, puzzles=1, boards=1)
    assert result.answers.halting_steps.tolist() == [1] * 30 and result.as_dict()["baselines"] == {}
    assert len(result.solutions()) == 1

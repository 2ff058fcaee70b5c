"""Halting early in evaluation, calibration, rollouts with voting and scaling."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from hrm import HRM, Engine, HRMConfig, InputError, load, save
from hrm.data import maze, sudoku
from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.inference.calibrate import calibrate, choose
from hrm.inference.engine import Puzzle
from hrm.inference.evaluate import evaluate
from hrm.inference.halting import parse_halting
from hrm.inference.rollouts import ranked, roll_out, symmetry
from hrm.inference.scaling import Scaling, ScalingCell, scale
from hrm.inference.solve import solve

STEPS = 4


def tiny(seq_len=16):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1, "halt_max_steps": STEPS}
    model = HRM(
        HRMConfig(
            seq_len=seq_len,
            vocab_size=6,
            num_puzzle_identifiers=3,
            puzzle_emb_ndim=32,
            forward_dtype="float32",
            **sizes,
        )
    )
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
        model.inner.q_head.bias.copy_(torch.tensor([0.0, 1.0]))
        model.inner.puzzle_emb.weights.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Puzzles whose labels are what the tiny model answers after some segment, or the solution."""
    folder = tmp_path_factory.mktemp("scaling") / "data"
    puzzles = sudoku.generate(20, 4, np.random.default_rng(0))
    solutions = solve(tiny(), sudoku.Sudoku(4), puzzles.inputs, halt="fixed", puzzle_identifiers=np.arange(20) % 3)
    splits = {}
    for split in ("train", "test"):
        splits[split] = {"all": SetBuilder()}
        for index, one in enumerate(solutions):
            labels = one.frames[index % STEPS].tokens if index % 5 else puzzles.labels[index]
            splits[split]["all"].add_example(one.inputs, labels)
            splits[split]["all"].end_puzzle(index % 3)
            splits[split]["all"].end_group()
    write_dataset(folder, splits, vocab_size=6, seq_len=16, identifiers=list("abc"), task="sudoku")
    return folder


def test_evaluation_with_early_halting_is_what_fixed_promises(folder, tmp_path):
    dataset = open_dataset(folder, "test")
    fixed = evaluate(tiny(), dataset, batch_size=20, out=tmp_path / "fixed")
    early = evaluate(tiny(), dataset, batch_size=7, halt="q", out=tmp_path / "q")
    assert 0 < fixed.early_exact_accuracy < 1 and 1 < fixed.early_steps < STEPS
    assert early.exact_accuracy == pytest.approx(fixed.early_exact_accuracy)
    assert (early.steps, early.count) == (pytest.approx(fixed.early_steps), 20)
    assert early.lm_loss is None and "lm_loss" not in early.as_dict()
    saved, of_fixed = (np.load(tmp_path / name / "predictions.npz") for name in ("q", "fixed"))
    np.testing.assert_array_equal(saved["early_steps"], of_fixed["early_steps"])
    np.testing.assert_array_equal(saved["inputs"], of_fixed["inputs"])


@pytest.mark.parametrize("task", [sudoku.Sudoku(4), sudoku.Sudoku(6), sudoku.Sudoku(9), maze.Maze(9)])
def test_a_symmetry_keeps_solutions_and_is_undone(task):
    rng = np.random.default_rng(0)
    generate = sudoku.generate if task.name == "sudoku" else maze.generate
    puzzles = generate(1, task.size, rng)
    inputs, labels = puzzles.inputs[0], puzzles.labels[0]
    seen = set()
    for number in range(8):
        guise = symmetry(task, number, rng)
        assert task.check(guise.apply(inputs), guise.apply(labels)) is None
        np.testing.assert_array_equal(guise.undo(guise.apply(labels)), labels)
        seen.add(guise.apply(labels).tobytes())
    assert len(seen) >= 7
    np.testing.assert_array_equal(symmetry(task, 0, rng).apply(inputs), inputs)


def test_the_vote():
    puzzle = sudoku.generate(1, 4, np.random.default_rng(0))
    inputs, right = puzzle.inputs[0], puzzle.labels[0]
    often, sure, unsure = (np.full(16, token, np.uint8) for token in (2, 3, 4))
    answers = [(often, -9.0), (often, -9.0), (unsure, 0.0), (sure, 5.0), (right, -9.0)]
    order = [one.tokens.tolist() for one in ranked(sudoku.Sudoku(4), inputs, answers)]
    assert order == [one.tolist() for one in (right, often, sure, unsure)]
    assert [one.votes for one in ranked(None, inputs, answers)] == [2, 1, 1, 1]
    assert not ranked(None, inputs, answers)[0].solves


@pytest.mark.parametrize("how", [{}, {"augment": False, "noise": 0.7}])
def test_cells_are_what_separate_runs_give(folder, how, tmp_path, told):
    dataset, task = open_dataset(folder, "test"), sudoku.Sudoku(4)
    several = {"segments": [1, 3, 6], "rollouts": [1, 3]}
    found = scale(tiny(), task, dataset, slots=8, halt="q", progress=told, **several, **how)
    cells = found.cells
    assert told.ends == {"rollouts": (3 * dataset.num_examples,) * 2}
    assert [(one.segments, one.rollouts) for one in cells] == [(1, 1), (3, 1), (6, 1), (1, 3), (3, 3), (6, 3)]
    for one in cells:
        alone = {"segments": [one.segments], "rollouts": [one.rollouts]}
        assert Scaling((one,)) == scale(tiny(), task, dataset, slots=8, halt="q", **alone, **how)
    direct = evaluate(tiny(), dataset, batch_size=8, halt="q", max_steps=3)
    assert (cells[1].exact_accuracy, cells[1].compute) == pytest.approx((direct.exact_accuracy, direct.steps))
    found.save(tmp_path, data="x")
    assert json.loads((tmp_path / "scaling.json").read_text())["cells"][0]["segments"] == 1
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("settles", [2, 8, 64])
def test_labels_of_the_picture_do_not_overlap(settles):
    """Points of many segments coincide where every puzzle has halted after ``settles``; those of rollouts come near."""
    cells = [
        ScalingCell(steps, tries, min(0.995, 0.9 + 0.01 * min(steps, settles).bit_length()), 1, used)
        for tries in (1, 4, 16)
        for steps in (1, 2, 4, 8, 16, 32, 64)
        for used in [tries * min(steps, settles, 4 + steps / 20)]
    ]
    (axes,) = (figure := Scaling(tuple(cells)).figure()).axes
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    dots = [axes.transData.transform((one.compute, 100 * one.exact_accuracy)) for one in cells]
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    covered = [tuple(map(int, text.get_text().split(" to "))) for text in axes.texts]
    each = [[one for one in covered if one[0] <= steps <= one[-1]] for steps in (1, 2, 4, 8, 16, 32, 64)]
    assert [len(one) for one in each] == [3] * 7  # one for each number of rollouts


def test_rollouts_that_would_be_the_same_are_refused():
    with Engine(tiny(), slots=2) as engine, pytest.raises(InputError, match="2 rollouts would all be the same"):
        next(roll_out(engine, sudoku.Sudoku(4), [Puzzle(np.ones(16, int))], 2, augment=False))


def test_a_maze_has_eight_guises():
    puzzle = maze.generate(1, 5, np.random.default_rng(0)).inputs[0]
    with Engine(tiny(25), slots=2) as engine:
        with pytest.raises(
            InputError, match="^9 rollouts of a maze .* its 8 turns .*; give noise=0.5, or at most 8 roll"
        ):
            next(roll_out(engine, maze.Maze(5), [Puzzle(puzzle)], 9))
        for number, noise in ((8, 0.0), (9, 0.5)):
            rollouts = list(roll_out(engine, maze.Maze(5), [Puzzle(puzzle)], number, noise=noise))
            assert len({one.symmetry.cells.tobytes() for one in rollouts}) == 8
            assert [one.number for one in rollouts] == list(range(number))


def test_choosing_a_threshold():
    # Puzzle 0 is right from segment 1, sure at once; 1 from segment 2; 2 turns right late, though sure too early.
    margins = np.array([[1.0, -2.0, 0.5], [2.0, 0.8, 0.6], [2.0, 2.0, 3.0]])
    right = np.array([[True, False, False], [True, True, False], [True, True, True]])
    found = choose(margins, right)
    assert found.chosen.exact_accuracy == found.fixed.exact_accuracy == 1
    assert (found.chosen.threshold, found.chosen.mean_steps) == (pytest.approx(0.6), 2)  # segments 1, 2, 3
    assert (found.by_q.exact_accuracy, found.by_q.mean_steps) == (pytest.approx(2 / 3), pytest.approx(4 / 3))
    assert choose(margins, right, loss=0.34).chosen.mean_steps == pytest.approx(4 / 3)


def test_a_threshold_is_not_behind_q_where_going_on_loses_answers():
    margins = np.array([[1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    right = np.array([[True, False], [False, True], [False, True]])
    found = choose(margins, right)
    assert (found.fixed.exact_accuracy, found.by_q.exact_accuracy, found.chosen.exact_accuracy) == (0.5, 1, 1)


def test_a_calibration_holds_in_evaluation(folder, tmp_path, told):
    dataset = open_dataset(folder, "test")
    save(tiny(), tmp_path / "model")
    with pytest.raises(InputError, match="has not been calibrated"):
        parse_halting("calibrated", tmp_path / "model")
    found = calibrate(tiny(), dataset, slots=6, progress=told)
    assert told.ends == {"calibrating": (found.count, found.count)}
    found.save(tmp_path / "model", "test")
    metrics = evaluate(
        load(tmp_path / "model"), dataset, batch_size=6, halt=parse_halting("calibrated", tmp_path / "model")
    )
    assert metrics.exact_accuracy == pytest.approx(found.chosen.exact_accuracy)
    assert metrics.steps == pytest.approx(found.chosen.mean_steps)
    assert metrics.exact_accuracy >= evaluate(tiny(), dataset, batch_size=6).exact_accuracy - 1e-9
    assert (tmp_path / "model" / "halting.png").read_bytes().startswith(b"\x89PNG")

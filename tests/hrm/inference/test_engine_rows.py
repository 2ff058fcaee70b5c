"""A puzzle's answer and Q values: independent of the other rows, and the same with and without a graph."""

import numpy as np
import pytest
import torch
from engine_rows import STEPS, assert_bits, assert_matches, run_alone, tiny, until_halting

import hrm
import hrm.inference.engine.segment as segment_module
import hrm_kernels
from hrm import HRM, TRM, Engine
from hrm.inference.engine import Puzzle
from hrm.inference.segments import segments
from hrm.step_graph import StepGraph
from hrm_kernels.graphs import capturable
from hrm_kernels.tuning import cpu as cpu_tuning


@pytest.mark.parametrize("family", [HRM, TRM])
@pytest.mark.parametrize("slots", [1, 4, 7])
def test_a_row_does_not_depend_on_the_other_rows(puzzles, slots, family):
    model = tiny(family)
    expected = [until_halting(run_alone(model, one)) for one in puzzles]
    assert len({len(frames) for frames in expected}) > 2
    orders = [list(range(24)), list(reversed(range(24))), [3], [5, 3, 5, 5, 3] * 4]
    for order in orders:
        with Engine(model, slots=slots, max_steps=STEPS) as engine:
            for number, result in zip(order, engine.solve(puzzles[i] for i in order), strict=True):
                assert_matches(result, expected[number])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sudoku4", "sudoku6", "sudoku9", "maze11"])
def test_shipped_models_answer_the_same_in_any_slot_with_any_threads(name, dtype):
    """Models with attention and with token mixing.

    On the reference backend q_head, lm_head and the SwiGLU of token mixing are PyTorch's matrix products.
    """
    model = hrm.load(name, forward_dtype=dtype)
    inputs = torch.randint(1, model.config.vocab_size, (6, model.config.seq_len), generator=torch.manual_seed(0))
    rows, threads = [Puzzle(one.numpy(), 0) for one in inputs], torch.get_num_threads()
    expected = [until_halting(run_alone(model, one, steps=3)) for one in rows]
    try:
        for slots, count in ((1, 1), (3, 2), (8, 1), (8, 2)):
            torch.set_num_threads(count)
            with Engine(model, slots=slots, max_steps=3, halt="q") as engine:
                for result, frames in zip(engine.solve(rows), expected, strict=True):
                    assert_matches(result, frames)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("exact_rows")
def test_a_choice_by_size_does_not_reach_answers(puzzles, monkeypatch, tmp_path):
    """PyTorch is measured to be faster from two puzzles on; an answer must not depend on how many others there are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times = [
        cpu_tuning.Times(op, "float32", "forward", width, rows, slow, 10.0)
        for op, width in (("linear", 14), ("transformer_block", 32), ("recurrent_cycles", 32))
        for rows, slow in ((17, 5.0), (34, 20.0))
    ]
    cpu_tuning.write(cpu_tuning.user_path(), cpu_tuning.Table(cpu_tuning.Machine.here(), "2026-11-29", tuple(times)))
    try:
        model = tiny()
        x, head = torch.zeros(2, 17, 32), model.inner.lm_head.weight.detach()
        assert [hrm_kernels.explain("linear", x[:rows], head) for rows in (1, 2)] == ["cpu", "reference"]
        expected = [until_halting(run_alone(model, one)) for one in puzzles]
        for slots in (1, 7):
            with Engine(model, slots=slots, max_steps=STEPS) as engine:
                for result, frames in zip(engine.solve(puzzles), expected, strict=True):
                    assert_bits(result, frames)
        inputs = torch.from_numpy(np.stack([one.inputs for one in puzzles])).int()
        ids = torch.tensor([one.identifier for one in puzzles], dtype=torch.int32)
        together, alone = (
            [next(segments(model, {"inputs": inputs[:n], "puzzle_identifiers": ids[:n]}, 1)) for n in sizes]
            for sizes in ((24,), (1,))
        )
        assert torch.equal(together[0].outputs["logits"][:1], alone[0].outputs["logits"])
    finally:
        monkeypatch.undo()
        cpu_tuning.forget()


@pytest.mark.usefixtures("exact_rows")
def test_rules_of_halting(puzzles):
    model = tiny()
    every = [run_alone(model, one, steps=24) for one in puzzles]
    rules = {
        "fixed": lambda frames, i: False,
        "q": lambda frames, i: frames[i][1] > frames[i][2],
        "margin:-0.7": lambda frames, i: np.float32(frames[i][1]) - np.float32(frames[i][2]) > -0.7,
        "stable:1": lambda frames, i: i >= 1 and (frames[i][0] == frames[i - 1][0]).all(),
        "stable:2": lambda frames, i: i >= 2 and all((frames[i][0] == frames[i - j][0]).all() for j in (1, 2)),
    }
    seen = set()
    for halt, rule in rules.items():
        with Engine(model, slots=4, max_steps=24, halt=halt) as engine:
            results = list(engine.solve(puzzles))
        for result, frames in zip(results, every, strict=True):
            assert_matches(result, until_halting(frames, rule))
        seen.add(tuple(result.steps for result in results))
    assert len(seen) == len(rules)  # no two rules are equivalent
    with Engine(model, slots=4, max_steps=STEPS, min_steps=3, halt=lambda moment: moment.steps >= 0) as engine:
        assert {result.steps for result in engine.solve(puzzles)} == {3}


@pytest.mark.usefixtures("exact_rows")
def test_the_trace_has_every_segment(puzzles):
    model = tiny()
    with Engine(model, slots=3, max_steps=STEPS) as engine:
        results = list(engine.solve(puzzles[:5], trace=True))
    for result, puzzle in zip(results, puzzles):
        frames = until_halting(run_alone(model, puzzle, 3))
        assert [frame.step for frame in result.trace] == list(range(1, len(frames) + 1))
        for frame, (tokens, q_halt, q_continue) in zip(result.trace, frames):
            np.testing.assert_array_equal(frame.tokens, tokens)
            assert (frame.q_halt, frame.q_continue) == (q_halt, q_continue)
        assert result.confidence == pytest.approx(1 / (1 + np.exp(-result.q_halt)))


@pytest.mark.parametrize("family", [HRM, TRM])
def test_segments_replayed_as_a_graph(puzzles, family, recorded_capture, monkeypatch):
    """Refill and reading back go through the graph, in operations without synchronization."""
    model, halt = tiny(family), lambda moment: moment.tokens[:, 0] % 2 == moment.steps % 2
    with Engine(model, 5, STEPS, halt=halt, backend="reference") as engine:
        direct = list(engine.solve(puzzles, trace=True))
    monkeypatch.setattr(
        segment_module, "segment_graph", lambda answers, step: StepGraph(step, recorded_capture, torch.device("cpu"))
    )
    with Engine(model, 5, STEPS, halt=halt, backend="reference") as engine:
        replayed = list(engine.solve(puzzles, trace=True))
    assert len(recorded_capture.recorders) == 1 and recorded_capture.replays >= 5
    assert len({result.steps for result in direct}) > 2
    for one, other in zip(direct, replayed, strict=True):
        assert_bits(other, [(frame.tokens, frame.q_halt, frame.q_continue) for frame in one.trace])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", [HRM, TRM])
def test_a_gpu_replays_segments(puzzles, family, monkeypatch):
    model, taken = tiny(family).cuda(), []
    with Engine(model, 5, STEPS) as engine:
        replayed = list(engine.solve(puzzles))
    monkeypatch.setattr(segment_module, "segment_graph", lambda answers, step: taken.append(capturable(answers)))
    with Engine(model, 5, STEPS) as engine:
        direct = list(engine.solve(puzzles))
    assert taken == [True]
    for one, other in zip(direct, replayed, strict=True):
        assert_bits(other, [(one.tokens, one.q_halt, one.q_continue)] * one.steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_weights_that_change_between_puzzles(puzzles):
    model = tiny(forward_dtype="bfloat16").cuda()
    answers = []
    with Engine(model, 5, STEPS, halt="fixed") as engine:
        list(engine.solve(puzzles))
        with torch.no_grad():
            model.inner.lm_head.weight.neg_()
        answers.append(list(engine.solve(puzzles)))
    with Engine(model, 5, STEPS, halt="fixed") as engine:
        answers.append(list(engine.solve(puzzles)))
    assert [one.tokens.tobytes() for one in answers[0]] == [one.tokens.tobytes() for one in answers[1]]

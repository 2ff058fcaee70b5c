"""Several trajectories per puzzle: reproducible, independent of slots and neighbours, and ended in time."""

import gc
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from engine_rows import SIZES, STEPS, assert_bits, run_alone, tiny, until_halting

import hrm
import hrm.inference.engine.segment as segment_module
from hrm import HRM, TRM, Engine, EqR, EqRConfig, HRMConfig, InputError
from hrm.config import URMConfig
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku, generate
from hrm.inference.engine import Puzzle, Trajectories
from hrm.inference.engine.segment import disturbed, residual
from hrm.inference.segments import segments
from hrm.step_graph import StepGraph
from hrm.urm import URM

TASK = Sudoku(4)
NOISY = Trajectories(3, noise=0.5, start_noise=0.3, seed=5)


class Right(Sudoku):
    """Any answer is right."""

    def is_solved(self, inputs):
        return False

    def check(self, inputs, answer):
        return None


def tiny_eqr():
    """A model that starts from random states."""
    torch.manual_seed(0)
    model = EqR(EqRConfig(**SIZES, L_layers=1, H_cycles=1, L_cycles=2, pos_encodings="rope"))
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
    return model.eval()


def facts(result):
    """All that is known of a result."""
    of_each = [
        (one.number, one.tokens.tobytes(), one.steps, one.q_halt, one.residual, one.verified)
        for one in result.trajectories
    ]
    return result.tokens.tobytes(), result.steps, result.q_halt, result.verified, dict(result.chosen), of_each


@pytest.mark.usefixtures("exact_rows")
@pytest.mark.parametrize("family", [HRM, TRM])
def test_a_trajectory_does_not_depend_on_slots_and_neighbours(puzzles, family):
    model, seen = tiny(family), {}
    puzzles = [one._replace(seed=index) for index, one in enumerate(puzzles[:6])]
    for slots, order in ((1, range(6)), (4, [5, 4, 3, 2, 1, 0]), (7, [2, 2, 0, 1, 3, 4, 5])):
        with Engine(model, slots, STEPS, task=TASK, trajectories=NOISY) as engine:
            for number, result in zip(order, engine.solve(puzzles[i] for i in order), strict=True):
                assert seen.setdefault(number, facts(result)) == facts(result)
    assert len({one[5][0][1] for one in seen.values() if one[5]}) > 1
    assert any(len({each[3] for each in one[5]}) == 3 for one in seen.values())  # the trajectories differ


@pytest.mark.usefixtures("exact_rows")
def test_the_first_trajectory_is_the_plain_one_and_seeds_change_the_others(puzzles):
    model, q_halts = tiny(), []
    for settings, seed in ((NOISY, 0), (NOISY, 1), (Trajectories(3, noise=0.5, start_noise=0.3), 0)):
        with Engine(model, 4, STEPS, trajectories=settings) as engine:
            (result,) = engine.solve([puzzles[3]._replace(seed=seed)])
        frames = until_halting(run_alone(model, puzzles[3]))
        first, second, third = result.trajectories
        assert (first.steps, first.q_halt) == (len(frames), frames[-1][1])
        np.testing.assert_array_equal(first.tokens, frames[-1][0])
        q_halts.append((second.q_halt, third.q_halt))
    assert len({*sum(q_halts, ())}) == 6


@pytest.mark.usefixtures("exact_rows")
def test_a_model_with_random_starts_draws_them_by_the_seed(puzzles):
    model, seen = tiny_eqr(), {}
    for slots in (1, 5):
        for settings, seed in (
            (Trajectories(3), 4),
            (Trajectories(3, seed=1), 4),
            (Trajectories(), 0),
            (Trajectories(), 7),
        ):
            with Engine(model, slots, 3, halt="fixed", trajectories=settings) as engine:
                for result in engine.solve([puzzles[0]._replace(seed=seed), puzzles[1]]):
                    key = (settings, seed, result.index)
                    assert seen.setdefault(key, facts(result)) == facts(result)
    q_halts = [one[3] for key in seen for one in seen[key][5] if key[2] == 0]
    plain, other = (seen[Trajectories(), seed, 0][2] for seed in (0, 7))
    assert [q_halts[0], q_halts[3]] == [plain] * 2 and len(
        {*q_halts, other}
    ) == 6  # the first has the seed of evaluation
    batch = {"inputs": torch.from_numpy(puzzles[0].inputs)[None].int(), "puzzle_identifiers": torch.zeros(1).int()}
    with torch.no_grad():
        *_, last = segments(model, batch, 3)
    assert plain == last.outputs["q_halt_logits"].item()


@pytest.mark.usefixtures("exact_rows")
def test_threads_do_not_change_trajectories():
    model, threads, seen = hrm.load("sudoku4"), torch.get_num_threads(), []
    inputs = generate(2, 4, np.random.default_rng(0)).inputs
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with Engine(model, 4, 2, task=TASK, trajectories=Trajectories(3, noise=0.3, augment=True)) as engine:
                seen.append([facts(result) for result in engine.solve(inputs)])
    finally:
        torch.set_num_threads(threads)
    assert seen[0] == seen[1]


@pytest.mark.usefixtures("exact_rows")
def test_a_verified_answer_ends_the_other_trajectories():
    """Of two verified ones, that with fewer segments is taken, whatever the slots; worse ones are not reported."""

    class Lucky(Sudoku):
        def check(self, inputs, answer):
            return None if zlib.crc32(answer.tobytes()) % 4 == 0 else "no luck"

    model, inputs = tiny(), generate(10, 4, np.random.default_rng(2)).inputs
    every, numbers = {}, set()
    for stop in (True, False):
        for slots in (1, 5):
            trajectories = Trajectories(4, noise=0.5, stop=stop)
            with Engine(model, slots, 4, halt="q", task=Lucky(4), trajectories=trajectories) as engine:
                results = [facts(one) for one in engine.solve(inputs)]
            assert every.setdefault(stop, results) == results
    for stopped, full in zip(every[True], every[False]):
        right = [(steps, number) for number, _, steps, *_, verified in full[5] if verified]
        last = min(right, default=(4, 4))
        assert [each for each in full[5] if (each[2], each[0]) <= last] == stopped[5] and len(full[5]) == 4
        assert stopped[3] == bool(right) and (not right or stopped[1] == last[0])
        numbers.add((len(stopped[5]), last[1]))
    assert len(numbers) > 3
    trajectories = Trajectories(4, noise=0.5, select="q,check")
    with Engine(model, 2, 2, halt="fixed", task=Right(4), trajectories=trajectories) as engine:
        assert all(len(one.trajectories) == 4 for one in engine.solve(inputs[:2]))  # check is not the first rule


def test_the_rest_of_a_solved_puzzle_costs_no_segment():
    """One slot, four trajectories: the answer of the first is right after a segment, and the others never start."""
    segments = []

    def halt(moment):
        segments.append(moment.steps[0])
        return moment.steps >= 1

    with Engine(tiny(), 1, 5, halt=halt, task=Right(4), trajectories=4) as engine:
        results = list(engine.solve([np.ones(16, int)] * 2))
    assert segments == [1, 1] and [[one.number for one in result.trajectories] for result in results] == [[0], [0]]


def test_cancelling_a_puzzle_ends_all_its_trajectories():
    entered, go_on, segments = threading.Semaphore(0), threading.Semaphore(0), []

    def halt(moment):
        entered.release()
        assert go_on.acquire(timeout=60)
        segments.append(moment.steps.copy())
        return moment.steps >= 3

    with Engine(tiny(), 2, 50, halt=halt, trajectories=3) as engine:
        first, second = engine.submit(np.ones(16, int)), engine.submit(np.ones(16, int))
        assert entered.acquire(timeout=60) and first.cancel()
        go_on.release(100)
        assert len(second.result(timeout=60).trajectories) == 3
    # one segment of two trajectories of the first puzzle; its third one never starts
    assert first.cancelled() and len(segments) == 1 + 3 + 3


def test_a_trajectory_of_a_variant_answers_the_puzzle_itself():
    inputs = generate(4, 4, np.random.default_rng(3)).inputs
    with Engine(hrm.load("sudoku4"), 8, 8, task=TASK, trajectories=Trajectories(3, augment=True, stop=False)) as engine:
        for result, puzzle in zip(engine.solve(inputs, trace=True), inputs, strict=True):
            assert len(result.trajectories) == 3
            for one in result.trajectories:
                assert one.verified and TASK.check(puzzle, one.tokens) is None
                np.testing.assert_array_equal(one.trace[-1].tokens, one.tokens)
                assert len(one.trace) == one.steps
                assert one.residual == pytest.approx(np.mean([frame.residual for frame in one.trace[-3:]]))
            assert any(result.trace is one.trace for one in result.trajectories)


def test_residuals_and_noise_by_hand(puzzles):
    model = tiny().eval()
    settings = Trajectories(2, noise=0.5)
    with Engine(model, 2, 4, halt="fixed", trajectories=settings) as engine:
        (result,) = engine.solve(puzzles[:1], trace=True)
    seed = int(np.random.default_rng((0, 0, 1)).integers(2**62))
    batch = {"inputs": torch.from_numpy(puzzles[0].inputs)[None].int(), "puzzle_identifiers": torch.zeros(1).int()}
    carry = model.initial_carry(batch)
    carry.z_H[:], carry.z_L[:] = model.inner.initial_states(torch.zeros(1, dtype=torch.int64))
    carry.halted[:], carry.current_data = False, batch
    changes = []
    for frame in result.trajectories[1].trace:
        start = disturbed(carry, torch.tensor([0.5]), torch.tensor([seed]))
        with torch.no_grad():
            carry, outputs = model(start, batch)
        carry.halted[:] = False
        before, after = (torch.cat([one.z_H, one.z_L]).double() for one in (start, carry))
        changes.append(((after - before).norm() / after.norm()).item())
        assert residual(outputs["change"]).item() == pytest.approx(changes[-1], rel=1e-6)
        assert frame.q_halt == pytest.approx(outputs["q_halt_logits"].item(), rel=1e-4, abs=1e-5)
        assert frame.residual == pytest.approx(changes[-1], rel=1e-4)
    assert result.trajectories[1].residual == pytest.approx(np.mean(changes[-3:]), rel=1e-4)
    assert residual(torch.zeros(1, 2)).item() == 0  # of states without positions


def test_a_model_with_one_state(puzzles):
    torch.manual_seed(0)
    model = URM(URMConfig(**SIZES, num_layers=1, H_cycles=1, L_cycles=2)).eval()
    settings = Trajectories(2, noise=0.5, start_noise=0.3)
    with Engine(model, 3, 3, halt="residual:0.001", trajectories=settings, backend="reference") as engine:
        for result in engine.solve(puzzles[:2], trace=True):
            first, second = result.trajectories
            assert all(0 < frame.residual < 2 for one in (first, second) for frame in one.trace)
            assert first.residual != second.residual


def test_noise_has_its_deviation_and_is_independent_between_rows_steps_and_states():
    model = tiny()
    carry = model.initial_carry(
        {"inputs": torch.ones(6, 16, dtype=torch.int32), "puzzle_identifiers": torch.zeros(6, dtype=torch.int32)}
    )
    carry.steps[:] = torch.tensor([0, 0, 1, 0, 0, 0])
    scales, seeds = torch.tensor([2.0, 2.0, 2.0, 0.0, 2.0, 2.0]), torch.tensor([1, 2, 1, 1, 1, 2**62])
    new = disturbed(carry, scales, seeds)
    draws = torch.cat([new.z_H.flatten(1), new.z_L.flatten(1)]).double()
    assert draws[[3, 9]].count_nonzero() == 0
    assert torch.equal(draws[0], draws[4]) and torch.equal(draws[6], draws[10])
    different = draws[[0, 1, 2, 5, 6, 7, 8, 11]] / 2
    count = different.shape[1]
    assert different.mean(1).abs().max() < 5 / count**0.5 and (different.std(1) - 1).abs().max() < 5 / count**0.5
    correlation = torch.corrcoef(different) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 5 / count**0.5


def test_noisy_segments_replayed_as_a_graph(puzzles, recorded_capture, monkeypatch):
    """Starts, noise and residuals go through the graph, in operations without synchronization."""
    options = {"halt": "residual:0.9:1", "backend": "reference", "trajectories": NOISY}
    noisy = [one._replace(seed=index) for index, one in enumerate(puzzles[:2])]
    with Engine(tiny(TRM), 3, STEPS, **options) as engine:
        direct = [facts(one) for one in engine.solve(noisy)]
    monkeypatch.setattr(
        segment_module, "segment_graph", lambda answers, step: StepGraph(step, recorded_capture, torch.device("cpu"))
    )
    with Engine(tiny(TRM), 3, STEPS, **options) as engine:
        assert [facts(one) for one in engine.solve(noisy)] == direct
    assert len(recorded_capture.recorders) == 1 and recorded_capture.replays >= 2


def test_a_plain_engine_computes_no_noise_and_no_residual(puzzles, monkeypatch):
    monkeypatch.setattr(segment_module, "noise", None)
    monkeypatch.setattr(segment_module, "residual", None)
    model = tiny()
    with Engine(model, 4, STEPS) as engine:
        for result, puzzle in zip(engine.solve(puzzles[:3]), puzzles):
            assert_bits(result, until_halting(run_alone(model, puzzle)))
            assert result.trajectories == () and result.chosen == {}


def memory_of(steps, puzzles):
    """Growth of the memory that Python allocates, over ``steps`` segments."""
    grown = []

    def watch(moment):
        if moment.steps[0] in (200, steps):
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0])
        return moment.steps >= steps

    tracemalloc.start()
    try:
        with Engine(tiny(), 2, steps, halt=watch, trajectories=Trajectories(2, noise=0.1)) as engine:
            next(engine.solve(puzzles[:1]))
    finally:
        tracemalloc.stop()
    return grown[-1] - grown[0]


@pytest.mark.slow
def test_memory_is_flat_over_10_000_segments(puzzles):
    assert memory_of(10_000, puzzles) < 8_000


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        (Trajectories(2, noise=0), None, r"2 trajectories would all be the same; give noise \(such as noise=0.1\)"),
        (Trajectories(2, augment=True), None, "2 trajectories would all be the same: no task is given"),
        (Trajectories(9, augment=True), Maze(5), "its 8 turns and reflections again.*at most 8 trajectories"),
        ({"count": 0}, None, "trajectories is 0, expected 1 or more"),
        ({"noise": -1.0}, None, "noise is -1.0, expected a number, 0 or more"),
        ({"start_noise": float("nan")}, None, "start_noise is nan"),
        ({"seed": -1}, None, "seed is -1, expected an integer from 0"),
        ({"select": "best"}, None, "unknown rule 'best'"),
    ],
)
def test_settings_that_are_refused(settings, task, message):
    with pytest.raises(InputError, match=message):
        settings = settings if isinstance(settings, Trajectories) else Trajectories(**settings)
        settings.for_model(tiny().config, task)


def test_without_other_settings_trajectories_differ_by_noise():
    config, random = HRMConfig(**SIZES), EqRConfig(**SIZES)
    assert Trajectories.of(4).for_model(config, None) == Trajectories(4, noise=0.1)
    for settings, of in ((Trajectories(4), random), (Trajectories(1), config), (Trajectories(4, None, 0.2), config)):
        assert settings.for_model(of, None).noise == 0
    assert Trajectories(4, augment=True).for_model(config, TASK).noise == 0
    with pytest.raises(InputError, match="seed is -1, expected an integer"), Engine(tiny(), trajectories=2) as engine:
        engine.submit(Puzzle(np.ones(16, int), seed=-1)).result(timeout=60)

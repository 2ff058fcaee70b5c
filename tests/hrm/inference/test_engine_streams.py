"""The results of ``Engine.solve``: each comes once, to its caller, also when the engine ends."""

import asyncio
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from engine_rows import STEPS, assert_bits, run_alone, tiny, until_halting

from hrm import HRM, Engine, HRMConfig, InputError
from hrm.data.sudoku import generate
from hrm.inference.engine import EngineError, Puzzle

SIZES = {"seq_len": 16, "vocab_size": 6, "hidden_size": 32, "num_heads": 2, "expansion": 1, "forward_dtype": "float32"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = HRM(HRMConfig(**SIZES, H_layers=1, L_layers=1))
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
        model.inner.q_head.bias.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    return generate(60, 4, np.random.default_rng(0)).inputs


@pytest.mark.parametrize("queue_size", [1, 3, 100])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_every_puzzle_has_one_result(model, inputs, queue_size, ordered, sized):
    mixed = [one if index % 7 else np.zeros(3, int) for index, one in enumerate(inputs)]
    with Engine(model, slots=4, max_steps=3, queue_size=queue_size) as engine:
        expected = [engine.submit(one).result() for one in inputs]
        results = list(engine.solve(mixed if sized else iter(mixed), ordered=ordered))
    assert sorted(result.index for result in results) == list(range(60))
    assert not ordered or [result.index for result in results] == list(range(60))
    for result in results:
        if result.index % 7:
            one = expected[result.index]
            assert (result.tokens.tobytes(), result.q_halt) == (one.tokens.tobytes(), one.q_halt)
        else:
            assert isinstance(result.error, InputError) and result.steps == 0


def test_two_callers_do_not_take_each_others_results(model, inputs):
    answers = {}

    def solve(name, rows):
        answers[name] = [result.tokens.tobytes() for result in engine.solve(rows, ordered=name != "b")]

    with Engine(model, slots=4, max_steps=3) as engine:
        callers = [
            threading.Thread(target=solve, args=(name, inputs[at : at + 20])) for at, name in zip((0, 20, 40), "abc")
        ]
        for one in callers:
            one.start()
        for one in callers:
            one.join(60)
        expected = [result.tokens.tobytes() for result in engine.solve(inputs)]
    assert answers["a"] == expected[:20] and answers["c"] == expected[40:]
    assert sorted(answers["b"]) == sorted(expected[20:40])


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("end", ["cancel", "crash"])
def test_an_iterator_raises_when_the_engine_ends(model, inputs, until, ordered, end):
    started, stop = threading.Event(), threading.Event()

    def rule(moment):
        started.set()
        assert stop.wait(60)
        if end == "crash":
            raise ZeroDivisionError
        return np.zeros(len(moment.steps), bool)

    raised = []

    def iterate():
        try:
            list(engine.solve(inputs, ordered=ordered))
        except Exception as error:
            raised.append(error)

    with Engine(model, slots=2, max_steps=10**6, halt=rule) as engine:
        caller = threading.Thread(target=iterate)
        caller.start()
        assert started.wait(60)
        if end == "cancel":
            threading.Thread(target=lambda: (until(lambda: engine._scheduler.queue.cancelling), stop.set())).start()
            engine.close(cancel=True)
        stop.set()
        caller.join(60)
    assert not caller.is_alive()
    (error,) = raised
    assert isinstance(error, CancelledError | EngineError)
    assert end == "cancel" or isinstance(error.__cause__, ZeroDivisionError)


def test_puzzles_of_every_integer_type_are_checked_by_value(model, inputs):
    huge = [np.full(16, 2**63, np.uint64), np.full(16, -(2**62)), np.full(16, 2**32 + 1), np.full(16, 255, np.uint8)]
    with Engine(model, slots=4, max_steps=2) as engine:
        results = list(engine.solve(huge))
        same = list(engine.solve([inputs[0].astype(kind) for kind in "bBhHiIlLqQ"]))
        (flags,) = engine.solve([np.ones(16, bool)])
    for puzzle, result in zip(huge, results):
        assert f"holds token {puzzle[0]}" in str(result.error)
    assert len({(result.tokens.tobytes(), result.q_halt) for result in same}) == 1 and same[0].error is None
    assert "bool" in str(flags.error)


BAD = [
    (np.ones(15, int), r"int64 of shape \[15\], expected integers \[seq_len\] = \[16\]"),
    (np.ones(16), "float64"),
    (np.full(16, 6), "holds token 6, expected 0 to 5"),
    (np.full(16, -1), "holds token -1"),
    ("1" * 16, "expected integers"),
    (None, "expected integers"),
    ([[1, 2], [3]], r"cannot be read \(ValueError: .*inhomogeneous.*\); expected 16 integers"),
    (Puzzle(np.ones(16, int), 3), "puzzle identifier 3 is not among the model's 3; expected 0 to 2"),
    (Puzzle(np.ones(16, int), "a"), "puzzle identifier 'a'"),
    (Puzzle(np.ones(16, int), 0, "x"), "seed is 'x', expected an integer from 0 to 2"),
    (Puzzle(np.ones(16, int), 0, 2**70), "seed is 1180591620717411303424, expected"),
]


def test_a_bad_puzzle_fails_and_the_others_are_solved(puzzles):
    mixed = [one for pair in zip((bad for bad, _ in BAD), puzzles) for one in pair]
    with Engine(tiny(), slots=3, max_steps=STEPS) as engine:
        good = list(engine.solve(puzzles[: len(BAD)]))
        results = list(engine.solve(mixed))
        with pytest.raises(InputError, match="holds token 6"):
            engine.submit(np.full(16, 6)).result(timeout=60)
    for (_, message), bad, fine, expected in zip(BAD, results[::2], results[1::2], good):
        with pytest.raises(InputError, match=message):
            raise bad.error
        assert bad.steps == 0 and len(bad.tokens) == 0 and np.isnan(bad.q_halt)
        assert fine.error is None and (fine.q_halt, fine.steps) == (expected.q_halt, expected.steps)


def test_results_in_order_and_as_completed(puzzles):
    """The first puzzle takes longest, and does not start before others wait."""
    model, others_wait = tiny(), threading.Event()
    several = sorted(puzzles, key=lambda one: -len(until_halting(run_alone(model, one, 3))))[:1] + puzzles

    def source():
        for number, one in enumerate(several):
            if number == 3:
                others_wait.set()
            yield one

    model.register_forward_pre_hook(lambda *_: None if others_wait.wait(60) else ())
    with Engine(model, slots=3, max_steps=STEPS, queue_size=2) as engine:
        ordered = list(engine.solve(source()))
        others_wait.clear()
        completed = list(engine.solve(source(), ordered=False))
    assert [result.index for result in ordered] == list(range(25))
    assert sorted(result.index for result in completed) == list(range(25))
    assert [result.index for result in completed] != list(range(25))
    for result in completed:
        np.testing.assert_array_equal(result.tokens, ordered[result.index].tokens)


def test_leaving_the_iterator_early_cancels_the_rest(puzzles):
    def endless():
        while True:
            yield from puzzles

    with Engine(tiny(), slots=2, max_steps=STEPS) as engine:
        taken = engine.solve(endless())
        assert [next(taken).index for _ in range(5)] == list(range(5))
        taken.close()
        assert engine.submit(puzzles[0]).result(timeout=60).error is None  # the slots are free again


@pytest.mark.usefixtures("exact_rows")
def test_asynchronous_use(puzzles):
    model = tiny()

    async def arriving():
        for one in puzzles[:9]:
            await asyncio.sleep(0)
            yield one

    async def main():
        with Engine(model, slots=2, max_steps=STEPS, queue_size=1) as engine:
            streamed = [result async for result in engine.asolve(arriving())]
            listed = [result async for result in engine.asolve([*puzzles[:8], np.zeros(3, int)])]
            together = await asyncio.gather(*(engine.asubmit(one) for one in puzzles[:9]))
            task = asyncio.create_task(engine.asubmit(puzzles[0]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(InputError):
                await engine.asubmit(np.zeros(3, int))
        return streamed, listed, together

    streamed, listed, together = asyncio.run(asyncio.wait_for(main(), 60))
    expected = [until_halting(run_alone(model, one, 2)) for one in puzzles[:9]]
    for results in (streamed, together):
        for result, frames in zip(results, expected, strict=True):
            assert_bits(result, frames)
    assert [result.index for result in listed] == list(range(9)) and listed[8].error is not None


def test_an_asynchronous_source_may_wait_for_answers(puzzles):
    """It yields the next puzzle when it knows the last answer. A source that fails, or is left, cancels the rest."""
    answers: list[int] = []

    async def one_by_one():
        for number, one in enumerate(puzzles[:5]):
            yield one
            while len(answers) <= number:
                await asyncio.sleep(0.001)

    async def broken():
        yield puzzles[0]
        raise KeyError("the source is broken")

    async def main():
        with Engine(tiny(), slots=2, max_steps=STEPS, queue_size=1) as engine:
            async for result in engine.asolve(one_by_one()):
                answers.append(result.index)
            with pytest.raises(KeyError):
                [one async for one in engine.asolve(broken())]
            leaving = engine.asolve(puzzles * 10)
            assert (await anext(leaving)).index == 0
            await leaving.aclose()
            assert all(caller.queued.cancelled() for caller in engine._scheduler.queue.blocked)
            return await engine.asubmit(puzzles[0])

    assert asyncio.run(asyncio.wait_for(main(), 60)).error is None
    assert answers == list(range(5))

"""The results of ``Engine.solve``: each comes once, to its caller, also when the engine ends."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from hrm import HRM, Engine, HRMConfig, InputError
from hrm.data.sudoku import generate
from hrm.inference.engine import EngineError

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

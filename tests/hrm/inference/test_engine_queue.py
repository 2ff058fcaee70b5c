"""The queue and the slots: order, blocking, cancellation, crashes, load."""

import os
import random
import threading
import time
import tracemalloc
from concurrent.futures import CancelledError, wait
from pathlib import Path

import numpy as np
import pytest
from engine_rows import STEPS, run_alone, tiny, until_halting

from hrm import Engine, InputError
from hrm.data.sudoku import generate
from hrm.inference.engine import EngineError


def test_freed_slots_are_taken_at_once(puzzles):
    """The number of segments is that of the puzzles' steps, below that of whole batches."""
    model, calls, all_queued = tiny(), [], threading.Event()
    steps = [len(until_halting(run_alone(model, one, 4))) for one in puzzles]

    def before_segment(*_):
        calls.append(1)
        assert all_queued.wait(60)

    model.register_forward_pre_hook(before_segment)
    with Engine(model, slots=4, max_steps=STEPS, queue_size=24) as engine:
        for one in puzzles:
            engine.submit(one)
        all_queued.set()
    in_batches = sum(max(steps[i : i + 4]) for i in range(0, 24, 4))
    assert sum(steps) / 4 <= len(calls) <= sum(steps) / 4 + STEPS < in_batches + STEPS


def test_cancelling_frees_a_slot_or_a_queue_entry(gate):
    model = gate()
    with Engine(model, slots=1, max_steps=100) as engine:
        running, waiting, last = (engine.submit(np.full(16, token)) for token in (1, 2, 3))
        assert model.entered.acquire(timeout=60)  # the first one is in a segment
        assert waiting.cancel() and running.cancel()
        model.permits.release(101)
        assert last.result(timeout=60).steps == 100
        assert model.calls == 101  # one segment for the cancelled puzzle
        done, not_done = wait([running, waiting], timeout=60)  # the cancellation is notified
        assert len(done) == 2 and not not_done
        with pytest.raises(CancelledError):
            running.result()
        assert not last.cancel()


def test_callers_block_while_the_queue_is_full(gate, until):
    model = gate()
    with Engine(model, slots=1, max_steps=1, queue_size=2) as engine:
        futures = [engine.submit(np.ones(16, int))]
        assert model.entered.acquire(timeout=60)
        futures += [engine.submit(np.ones(16, int)) for _ in range(2)]
        queued = threading.Event()
        caller = threading.Thread(target=lambda: (futures.append(engine.submit(np.ones(16, int))), queued.set()))
        caller.start()
        until(lambda: engine._scheduler.queue.blocked)
        assert not queued.is_set()
        model.permits.release(4)
        assert queued.wait(60)
        caller.join(60)
        assert all(future.result(timeout=60).steps == 1 for future in futures)


def test_blocked_callers_are_served_in_order_of_arrival(gate):
    """Measured by the order of segments: which caller is woken first is up to the operating system."""
    model = gate()
    with Engine(model, slots=1, max_steps=1, queue_size=2) as engine:

        def offer(*tokens):
            jobs = [engine._job(np.full(16, token), 0, False) for token in tokens]
            return engine._scheduler.queue.offer(jobs)

        assert offer(0) is None
        assert model.entered.acquire(timeout=60)
        assert offer(0) is None and offer(0) is None
        blocked = [offer(1, 2), offer(3), offer(4)]
        model.permits.release(1)
        assert model.entered.acquire(timeout=60)  # one free place, which is kept for the caller with two
        assert not any(caller.queued.done() for caller in blocked) and len(engine._scheduler.queue.waiting) == 1
        model.permits.release(20)
        for caller in blocked:
            caller.queued.result(timeout=60)
    assert model.served == [0, 0, 0, 1, 2, 3, 4]


def test_solve_is_not_starved_by_many_submitters():
    stop = threading.Event()
    with Engine(tiny(), slots=8, max_steps=STEPS) as engine:

        def submit():
            while not stop.is_set():
                engine.submit(np.ones(16, int)).result(timeout=60)

        callers = [threading.Thread(target=submit) for _ in range(40)]
        for caller in callers:
            caller.start()
        try:
            results = []
            solver = threading.Thread(target=lambda: results.extend(engine.solve([np.ones(16, int)] * 20)))
            solver.start()
            solver.join(60)
            assert len(results) == 20
        finally:
            stop.set()
            for caller in callers:
                caller.join(60)


def test_callbacks_may_submit():
    done = threading.Event()
    left = iter(range(4))
    futures = []

    def again(_):
        for _ in range(3):
            if next(left, None) is None:
                done.set()
                return
            futures.append(engine.submit(np.ones(16, int)))
            futures[-1].add_done_callback(again)

    with Engine(tiny(), slots=1, max_steps=1, queue_size=1) as engine:
        engine.submit(np.ones(16, int)).add_done_callback(again)
        assert done.wait(60)
    assert len(futures) == 4 and all(future.result().steps == 1 for future in futures)


@pytest.mark.parametrize("where", ["model", "halt"])
def test_a_crash_reaches_all_callers(gate, until, where):
    def broken(moment):
        raise ZeroDivisionError("the rule is broken")

    model = gate(fails_at=2 if where == "model" else None)
    with Engine(model, slots=1, max_steps=5, queue_size=2, halt="q" if where == "model" else broken) as engine:
        futures = [engine.submit(np.ones(16, int)) for _ in range(2)]
        assert model.entered.acquire(timeout=60)
        futures += [engine.submit(np.ones(16, int))]
        refused = []

        def submit():
            try:
                engine.submit(np.ones(16, int))
            except EngineError as error:
                refused.append(error)

        caller = threading.Thread(target=submit)
        caller.start()
        until(lambda: engine._scheduler.queue.blocked)
        model.permits.release(2)
        for future in futures:
            with pytest.raises(EngineError, match="worker has failed") as failed:
                future.result(timeout=60)
            assert isinstance(failed.value.__cause__, ZeroDivisionError)
        caller.join(60)
        assert not caller.is_alive() and isinstance(refused[0].__cause__, ZeroDivisionError)
        with pytest.raises(EngineError):
            list(engine.solve([np.ones(16, int)]))


def test_a_rule_of_the_wrong_shape_is_a_crash_with_a_reason(puzzles):
    with Engine(tiny(), slots=4, halt=lambda moment: moment.q_halt) as engine:
        with pytest.raises(EngineError) as failed:
            engine.submit(puzzles[0]).result(timeout=60)
    assert "halt returned float32 of shape [4], expected bool [slots] = [4]" in str(failed.value.__cause__)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_load(count):
    """Random arrival from several threads, random cancellation, 1 % malformed: every puzzle is accounted for."""
    inputs = generate(64, 4, np.random.default_rng(2)).inputs
    model, go = tiny(), threading.Event()
    model.register_forward_pre_hook(lambda *_: None if go.wait(60) else ())
    with Engine(model, slots=16, max_steps=STEPS) as engine:
        go.set()
        expected = [(result.tokens.tobytes(), result.q_halt) for result in engine.solve(inputs)]
        go.clear()
        all_started = threading.Barrier(4, go.set)
        tallies, failures = [], []

        def caller(seed):
            try:
                early = engine.submit(inputs[0])
                assert early.cancel()  # no puzzle is done before all callers are here
                all_started.wait(60)
                tallies.append(_one_caller(engine, inputs, expected, count // 4, random.Random(seed)))
            except BaseException as error:
                failures.append(error)

        tracemalloc.start()
        resident = _resident()
        callers = [threading.Thread(target=caller, args=(seed,), daemon=True) for seed in range(4)]
        for one in callers:
            one.start()
        for one in callers:
            one.join(240)
        peak = tracemalloc.get_traced_memory()[1]
        grown = _resident() - resident
        tracemalloc.stop()
        assert not failures and not any(one.is_alive() for one in callers)
        assert not engine._scheduler.queue.waiting
    solved, malformed, cancelled = (sum(column) for column in zip(*tallies, strict=True))
    assert solved + malformed + cancelled == count
    assert solved > 0.7 * count and malformed == 4 * (count // 400)
    # The engine does not keep results, so neither Python's memory nor that of tensors grows with their number.
    assert peak < 4e6 and grown < 50e6


def _resident():
    """Bytes of this process in memory; 0 without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 0


def _one_caller(engine, inputs, expected, count, rng):
    """Submit with pauses and cancel some; returns the numbers of solved, malformed and cancelled puzzles."""
    tally, pending = [0, 0, 0], []

    def settle(number, future):
        try:
            result = future.result(timeout=60)
        except InputError:
            tally[1] += 1
            assert number is None
        except CancelledError:
            tally[2] += 1
        else:
            tally[0] += 1
            assert (result.tokens.tobytes(), result.q_halt) == expected[number]

    for index in range(count):
        number = None if index % 100 == 99 else rng.randrange(len(inputs))
        puzzle = rng.choice([np.zeros(7, int), np.full(16, 99), "puzzle"]) if number is None else inputs[number]
        future = engine.submit(puzzle)
        pending.append((number, future))
        if rng.random() < 0.1:
            rng.choice(pending)[1].cancel()
        if rng.random() < 0.02:
            time.sleep(rng.random() / 500)
        if len(pending) > 50:
            settle(*pending.pop(rng.randrange(len(pending))))
    for one in pending:
        settle(*one)
    return tally

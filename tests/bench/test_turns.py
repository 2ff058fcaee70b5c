"""Candidates take turns, and disturbed turns can be repeated."""

import os
import threading
import time

import numpy as np
import pytest

from bench import turns
from bench.turns import Replay


def test_candidates_take_turns():
    order = []
    replays = {name: Replay(lambda name=name: order.append(name), 1, "calls") for name in "abc"}
    taken = turns.take_turns(replays, "cpu", 2)
    assert order == list("abcabc") and taken.disturbed == 0
    assert [len(values[name]) for name in "abc" for values in (taken.times, taken.waits)] == [2] * 6


def test_disturbed_turns_are_repeated_and_do_not_count(monkeypatch):
    """With a simulated clock: under load eager takes ten times as long and waits, ours takes twice as long."""
    now = {"clock": 0.0, "waited": 0.0, "turn": 0}

    def run(seconds, slowed):
        loaded = now["turn"] // 2 % 3 != 0  # two turns of three, with two candidates each
        now["clock"] += seconds * slowed if loaded else seconds
        now["waited"] += 0.06 * seconds * slowed if loaded else 0.04 * seconds
        now["turn"] += 1

    replays = {"eager": Replay(lambda: run(2.0, 10), 2, "calls"), "cpu": Replay(lambda: run(1.0, 2), 1, "calls")}
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(turns, "seconds_waited", lambda: now["waited"])
    taken = turns.take_turns(replays, "cpu", 5, patience=4)
    assert taken.disturbed == 8 and taken.times == {name: [pytest.approx(1.0)] * 5 for name in ("eager", "cpu")}
    assert taken.waits == {name: [pytest.approx(0.04)] * 5 for name in ("eager", "cpu")}
    taken = turns.take_turns(replays, "cpu", 30, patience=2)
    assert (taken.disturbed, len(taken.times["cpu"])) == (40, 20)
    assert len(turns.take_turns(replays, "cpu", 6).times["cpu"]) == 6  # without patience every turn counts
    monkeypatch.setattr(turns, "CALM", 0.0)
    taken = turns.take_turns(replays, "cpu", 5, patience=4)  # no calm turn among the first five: no more are taken
    assert (taken.disturbed, taken.times) == (5, {"eager": [], "cpu": []})


def test_waiting_for_a_core_is_counted():
    """With more busy threads than cores, some threads wait."""

    def work():
        values = np.ones(1 << 16)
        while not done.is_set():
            np.sqrt(values, out=values)  # this releases the interpreter's lock

    before, done = turns.seconds_waited(), threading.Event()
    others = [threading.Thread(target=work) for _ in range(4 * len(os.sched_getaffinity(0)))]
    for thread in others:
        thread.start()
    try:
        deadline = time.monotonic() + 60
        while turns.seconds_waited() - before < 0.2 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        waited = turns.seconds_waited() - before
        done.set()
        for thread in others:
            thread.join()
    assert waited >= 0.2


def test_without_the_counts_of_linux_waiting_is_wall_time_minus_cpu_time(monkeypatch):
    monkeypatch.setattr(turns.Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.setattr(turns.time, "perf_counter", lambda: 7.5)
    monkeypatch.setattr(turns.time, "thread_time", lambda: 3.0)
    assert turns.seconds_waited() == 4.5


@pytest.mark.parametrize("turn, rounds", [(1e-6, 51), (0.1, 15), (1.0, 5), (10.0, 3)])
def test_rounds_fit_into_the_time(turn, rounds):
    assert turns.rounds_for(1.5, 5, 51)(turn) == rounds


def test_after_the_time_no_turn_starts(monkeypatch):
    """At least three do, unless one of them was disturbed."""
    now = {"clock": 0.0, "waited": 0.0}

    def run():
        now["clock"] += 1.0

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(turns, "seconds_waited", lambda: now["waited"] * now["clock"])
    replays = {"cpu": Replay(run, 1, "calls")}
    assert len(turns.take_turns(replays, "cpu", 9, 2, until=4.5).times["cpu"]) == 5
    assert len(turns.take_turns(replays, "cpu", 9, 2, until=0.0).times["cpu"]) == turns.LEAST
    now["waited"] = 0.5
    taken = turns.take_turns(replays, "cpu", 9, 2, until=0.0)
    assert (taken.disturbed, taken.times) == (1, {"cpu": []})


def test_a_long_turn_is_not_warmed_up():
    ran = []
    replays = {"cpu": Replay(lambda: ran.append(1), 1, "calls", 2.5)}
    assert turns.warm_up(replays, "cpu") == 2.5 and not ran
    assert turns.warm_up({"cpu": Replay(lambda: ran.append(1), 1, "calls")}, "cpu") < 0.5 and len(ran) == 2

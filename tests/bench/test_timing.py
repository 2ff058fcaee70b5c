"""Candidates are checked against float64 before they are timed, and take turns."""

import copy
import dataclasses
import os
import threading
import time

import numpy as np
import pytest
import torch

from bench import ratio, suite, timing
from bench.ceilings import SMALL, floor
from bench.memory import peak_of
from bench.suite import Setup, candidates
from bench.timing import Candidate, on_backend
from bench.workloads import Workload, adam_atan2, fewest, of_op, sparse_sign_sgd


def test_wrong_absent_and_failing_candidates_are_not_timed():
    workload = of_op("add_rms_norm", 1, 5, itemsize=4)
    right = on_backend("reference", workload.op)

    def breaks(*arguments):
        raise RuntimeError("no\nroom")

    def lacks(*arguments):
        import no_such_module  # noqa: F401

    rows = timing.measure(
        workload,
        "cpu",
        torch.float32,
        {
            "eager": Candidate(right),
            "off": Candidate(lambda *arguments: right(*arguments) * (1 + 1e-4)),
            "off but another rule": Candidate(lambda *arguments: right(*arguments) * 2, checked=False),
            "elsewhere": Candidate(right, absent="needs a GPU"),
            "breaks": Candidate(breaks),
            "lacks": Candidate(lacks),
            "triton": Candidate(on_backend("cuda", workload.op)),
        },
        lambda turn: 3,
    )
    assert rows["eager"]["status"] == "ok" and len(rows["eager"]["times"]) == 3
    assert rows["off"]["status"].startswith("wrong: errors [") and "times" not in rows["off"]
    assert rows["off but another rule"]["status"] == "ok"
    assert rows["elsewhere"]["status"] == "absent: needs a GPU"
    assert rows["breaks"]["status"] == "failed: RuntimeError: no"
    assert rows["lacks"]["status"] == "absent: No module named 'no_such_module'"
    assert rows["triton"]["status"].startswith("unavailable: add_rms_norm: backend 'cuda' cannot serve")


def test_a_model_may_be_as_far_off_as_several_draws_of_plain_pytorch():
    def make(device, dtype, seed):
        return torch.nn.Linear(3, 1, bias=False).requires_grad_(False), torch.ones(1, 3)

    arguments = make("cpu", torch.float32, 0)
    arguments[0].weight.copy_(torch.tensor([1.0, 1e4, -1e4]))  # a unit in the last place of 1e4 is a thousandth

    def by(offset):
        return lambda model, x: model(x) + offset

    workload = Workload(
        "cancels",
        lambda *_: arguments,
        by(0),
        plain=by(0),
        widen=lambda a: (copy.deepcopy(a[0]).double(), a[1].double()),
    )
    off = max(abs(results[0].item() - 1) for results in timing.draws(workload, by(0), arguments))
    assert 2e-4 < off < 2e-3 and arguments[0].weight[0, 1] == 1e4
    ways = {"exact": by(0), "as a draw": by(1.5 * off), "beyond": by(2.5 * off)}
    rows = timing.measure(workload, "cpu", torch.float32, {n: Candidate(op) for n, op in ways.items()}, lambda turn: 1)
    assert [rows[name]["status"][:5] for name in ways] == ["ok", "ok", "wrong"]
    assert not list(timing.draws(workload, by(0), (torch.ones(3),)))  # an op alone amplifies nothing


def test_candidates_take_turns():
    order = []
    replays = {name: (lambda name=name: order.append(name), 1, "calls") for name in "abc"}
    turns = timing.take_turns(replays, "cpu", 2)
    assert order == list("abcabc") and turns.disturbed == 0
    assert [len(of[name]) for name in "abc" for of in (turns.times, turns.waits)] == [2] * 6


def test_turns_that_other_work_disturbs_are_taken_again_and_do_not_count(monkeypatch):
    """Time passes as told here: under load eager takes ten times as long and waits, ours twice as long."""
    now = {"clock": 0.0, "waited": 0.0, "turn": 0}

    def run(seconds, slowed):
        loaded = now["turn"] // 2 % 3 != 0  # (of two candidates) two turns of three
        now["clock"] += seconds * slowed if loaded else seconds
        now["waited"] += 0.06 * seconds * slowed if loaded else 0.04 * seconds
        now["turn"] += 1

    replays = {"eager": (lambda: run(2.0, 10), 2, "calls"), "cpu": (lambda: run(1.0, 2), 1, "calls")}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(timing, "waited", lambda: now["waited"])
    turns = timing.take_turns(replays, "cpu", 5, patience=4)
    assert turns.disturbed == 8 and turns.times == {name: [pytest.approx(1.0)] * 5 for name in ("eager", "cpu")}
    assert turns.waits == {name: [pytest.approx(0.04)] * 5 for name in ("eager", "cpu")}
    turns = timing.take_turns(replays, "cpu", 30, patience=2)
    assert (turns.disturbed, len(turns.times["cpu"])) == (40, 20)
    assert len(timing.take_turns(replays, "cpu", 6).times["cpu"]) == 6  # as they come
    monkeypatch.setattr(timing, "CALM", 0.0)
    turns = timing.take_turns(replays, "cpu", 5, patience=4)  # without a calm one: no more than asked for
    assert (turns.disturbed, turns.times) == (5, {"eager": [], "cpu": []})


def test_threads_that_wait_for_a_core_are_seen():
    """More threads than cores that each want one: some of them wait."""

    def work():
        values = np.ones(1 << 16)
        while not done.is_set():
            np.sqrt(values, out=values)  # without the interpreter's lock

    before, done = timing.waited(), threading.Event()
    others = [threading.Thread(target=work) for _ in range(4 * len(os.sched_getaffinity(0)))]
    for thread in others:
        thread.start()
    try:
        deadline = time.monotonic() + 60
        while timing.waited() - before < 0.2 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        found = timing.waited() - before
        done.set()
        for thread in others:
            thread.join()
    assert found >= 0.2


def test_without_the_kernels_counts_this_threads_cpu_time_is_compared_with_the_time(monkeypatch):
    monkeypatch.setattr(timing.Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 7.5)
    monkeypatch.setattr(timing.time, "thread_time", lambda: 3.0)
    assert timing.waited() == 4.5


def test_a_disturbed_comparison_is_not_judged():
    assert ratio.told([1.0, 2.0, 3.0] * 3, 0) == "2.00 x eager (quarters 1.00, 3.00)"
    assert ratio.told([1.0, 2.0, 3.0] * 3, 4).endswith("3.00); other work disturbed 4 of 13 turns")
    assert ratio.told([11.8] * 8, 192) == (
        "not judged: other work disturbed 192 of 200 turns; run python -m bench.ratio again when the machine is quiet"
    )


def test_candidates_with_arguments_of_their_own():
    made = []

    def make(device, dtype, seed):
        made.append(torch.zeros(1))
        return (made[-1],)

    workload = Workload("count", make, lambda x: x.add_(1), checked=False, own=True)
    rows = timing.measure(
        workload, "cpu", torch.float32, {n: Candidate(workload.op) for n in ("a", "b")}, lambda turn: 4
    )
    assert {row["status"] for row in rows.values()} == {"ok"}
    used = [one.item() for one in made if one.item()]
    assert len(used) == 2 and min(used) >= 4  # neither stepped the other's


@pytest.mark.parametrize("turn, rounds", [(1e-6, 51), (0.1, 15), (1.0, 5), (10.0, 3)])
def test_rounds_fit_the_time(turn, rounds):
    assert timing.rounds_for(1.5, 5, 51)(turn) == rounds


def test_floor_is_what_binds():
    ceilings = {"copy_bytes_per_s": 1e9, "cached_copy_bytes_per_s": 4e9, "matmul_flops_per_s": 1e9}
    assert floor(1e9, 0, ceilings) == (1.0, "memory")
    assert floor(8 * SMALL, 0, ceilings) == (pytest.approx(8 * SMALL / 4e9), "memory")
    assert floor(1e9, 3e9, ceilings) == (3.0, "arithmetic")
    assert floor(0, 3e9, ceilings | {"fma_flops_per_s": 2e9}) == (1.5, "arithmetic")
    assert suite.against(ceilings, 2.0, 1e9, 0) == {"bound": "memory", "of_ceiling": 0.5}
    assert suite.against(ceilings, 2.0, 0, 0) == {"bound": None, "of_ceiling": None}


def test_fewest_bytes_and_operations():
    tokens = 2 * 82
    assert fewest("add_rms_norm", 2, 82, False, itemsize=4) == (3 * 512 * 4 * tokens, 0)
    assert fewest("rope_attention", 2, 82, False) == (4 * 512 * 2 * tokens, 4 * 82 * 512 * tokens)
    moved, operations = fewest("recurrent_cycles", 2, 82, False)
    assert moved == 2 * (8 * 3_407_872 + 5 * tokens * 512)
    assert operations == 16 * tokens * (2 * 3_407_872 + 4 * 82 * 512)
    assert fewest("transformer_block", 1, 82, True)[1] == 3 * fewest("transformer_block", 1, 82, False)[1]


def test_every_candidate_says_whether_it_can_run():
    setup = Setup("cpu", torch.float32, full=False)
    found = candidates(of_op("rope_attention", 1, 5), setup)
    assert list(found) == ["eager", "flash-attn 2", "flash-attn 3", "cuDNN", "cpu"]
    assert found["cuDNN"].absent == "runs on NVIDIA GPUs only" and found["cpu"].absent is None
    full = candidates(of_op("swiglu", 1, 5), dataclasses.replace(setup, full=True))
    assert list(full) == ["eager", "compile", "compile, max-autotune", "Liger", "cpu"]
    assert "torch fused AdamW" in candidates(adam_atan2(1), setup)
    assert "torch fused AdamW" not in candidates(sparse_sign_sgd(3), setup)


def test_samples_reach_the_benchmark_unchanged():
    class Taker:
        """As pytest-benchmark's pedantic."""

        extra_info: dict = {}
        taken: list = []

        def pedantic(self, target, setup, rounds):
            for _ in range(rounds):
                setup()
                start = suite.clock()
                target()
                self.taken.append(suite.clock() - start)

    taker, samples = Taker(), list(np.random.default_rng(0).random(7))
    suite.hand_over(taker, samples, {"bytes": 3})
    assert taker.taken == samples and taker.extra_info == {"bytes": 3}


def test_peak_memory_of_a_step():
    def step():
        return torch.ones(16 << 20).sum()  # 64 MiB

    assert 60 << 20 < peak_of(step, "cpu") < 80 << 20


def test_slower_only_where_three_of_four_turns_are():
    assert ratio.slower([0.9, 0.8, 0.95, 0.97, 1.5])
    assert not ratio.slower([0.9, 0.8, 1.1, 1.2, 0.9])

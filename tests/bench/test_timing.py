"""Candidates are checked against float64 before they are timed, and take turns."""

import copy
import dataclasses

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
    times = timing.take_turns(replays, "cpu", 2)
    assert order == list("abcabc") and [len(times[name]) for name in "abc"] == [2, 2, 2]


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

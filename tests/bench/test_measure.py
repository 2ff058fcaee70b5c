"""Candidates are checked against float64 before they are timed."""

import copy

import torch

from bench.accuracy import perturbed_results
from bench.measure import Candidate, measure
from bench.sizes import Size
from bench.workload import Workload, on_backend
from bench.workloads import op_workload


def test_wrong_absent_and_failing_candidates_are_not_timed():
    workload = op_workload("add_rms_norm", Size(1, 5), itemsize=4)
    right = on_backend("reference", workload.op)

    def breaks(*arguments):
        raise RuntimeError("no\nspace")

    def lacks(*arguments):
        import no_such_module  # noqa: F401

    rows = measure(
        workload,
        "cpu",
        torch.float32,
        {
            "eager": Candidate(right),
            "off": Candidate(lambda *arguments: right(*arguments) * (1 + 1e-4)),
            "off but another rule": Candidate(lambda *arguments: right(*arguments) * 2, is_checked=False),
            "elsewhere": Candidate(right, absent_reason="needs a GPU"),
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


def test_a_model_may_be_as_wrong_as_several_runs_of_plain_pytorch():
    def make(device, dtype, seed):
        return torch.nn.Linear(3, 1, bias=False).requires_grad_(False), torch.ones(1, 3)

    arguments = make("cpu", torch.float32, 0)
    arguments[0].weight.copy_(torch.tensor([1.0, 1e4, -1e4]))  # 1e4 has a unit in the last place of 0.001

    def by(offset):
        return lambda model, x: model(x) + offset

    workload = Workload(
        "cancels",
        lambda *_: arguments,
        by(0),
        eager=by(0),
        to_float64=lambda a: (copy.deepcopy(a[0]).double(), a[1].double()),
    )
    off = max(abs(results[0].item() - 1) for results in perturbed_results(workload, by(0), arguments))
    assert 2e-4 < off < 2e-3 and arguments[0].weight[0, 1] == 1e4
    candidates = {"exact": by(0), "as one run": by(1.5 * off), "beyond": by(2.5 * off)}
    rows = measure(workload, "cpu", torch.float32, {n: Candidate(op) for n, op in candidates.items()}, lambda turn: 1)
    assert [rows[name]["status"][:5] for name in candidates] == ["ok", "ok", "wrong"]
    assert not list(perturbed_results(workload, by(0), (torch.ones(3),)))  # a single op amplifies nothing


def test_candidates_of_a_stateful_workload_do_not_share_arguments():
    made = []

    def make(device, dtype, seed):
        made.append(torch.zeros(1))
        return (made[-1],)

    workload = Workload("count", make, lambda x: x.add_(1), is_checked=False, is_stateful=True)
    rows = measure(workload, "cpu", torch.float32, {n: Candidate(workload.op) for n in ("a", "b")}, lambda turn: 4)
    assert {row["status"] for row in rows.values()} == {"ok"}
    used = [one.item() for one in made if one.item()]
    assert len(used) == 2 and min(used) >= 4  # neither candidate stepped the other's

"""``bench.cpu_goals`` judges undisturbed turns, keeps its time, and says why a goal does not apply."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

import hrm_kernels
from bench import models
from bench.accuracy import Oracle
from bench.cpu_goals import __main__ as command
from bench.cpu_goals import cases, goals, machine, run
from bench.cpu_goals.cases import BF16, F32, PARTS, Case
from bench.cpu_goals.goals import Goal, Verdict, judge, worst_of
from bench.cpu_goals.machine import NO_AMX, Machine
from bench.cpu_goals.write import as_text
from bench.inputs import OPS
from bench.measure import Candidate, measure
from bench.model_workloads import patched, segment_of
from bench.sizes import Size
from bench.workload import Workload, on_backend
from bench.workloads import op_workload
from hrm.config import HRMConfig, TRMConfig
from hrm_kernels.integrations.replacement import is_replaced

AVX2, AMX = Machine(has_amx=False, has_bfloat16=False), Machine(has_amx=True, has_bfloat16=True)


def rows(disturbed=0, **times):
    return {name: {"status": "ok", "times": list(values), "disturbed": disturbed} for name, values in times.items()}


def test_a_ratio_is_the_median_of_the_turns():
    goal = Goal("op", others=("PyTorch",), least=1.5)
    measured = rows(ours=[1.0, 1.0, 2.0], PyTorch=[1.6, 1.5, 6.0])
    verdict = judge(goal, measured)
    assert (verdict.status, verdict.value, verdict.quarters) == (goals.MET, 1.6, (1.55, 2.3))
    assert verdict.measured == "1.60 x PyTorch (1.55, 2.30)" and verdict.expected == ">= 1.5 x PyTorch"
    assert judge(Goal("op", others=("PyTorch",), least=1.61), measured).status == goals.MISSED


def test_of_several_the_fastest_counts():
    goal = Goal("op", others=("bfloat16", "float32"), least=1.0)
    verdict = judge(goal, rows(ours=[1.0] * 3, bfloat16=[9.0] * 3, float32=[0.9] * 3))
    assert (verdict.status, verdict.against) == (goals.MISSED, "float32")
    verdict = judge(goal, rows(ours=[1.0] * 3, bfloat16=[1.1] * 3, float32=[9.0] * 3))
    assert (verdict.status, verdict.against) == (goals.MET, "bfloat16")


def test_a_share_of_a_peak_and_a_time():
    verdict = judge(Goal("op", others=("tiles alone",), least=0.8), rows(ours=[1.0] * 3, **{"tiles alone": [0.75] * 3}))
    assert verdict.status == goals.MISSED and verdict.measured == "75% of tiles alone (75%, 75%)"
    assert verdict.expected == ">= 80% of tiles alone"
    verdict = judge(Goal("op", most_seconds=12e-3), rows(ours=[0.011, 0.012, 0.013]))
    assert verdict.status == goals.MET and verdict.measured == "12.0 ms (11.5 ms, 12.5 ms)"
    assert judge(Goal("op", most_seconds=12e-3), rows(ours=[0.013] * 3)).status == goals.MISSED


def test_a_busy_machine_is_not_judged():
    verdict = judge(Goal("op", others=("PyTorch",), least=1.0), rows(ours=[9.0] * 2, PyTorch=[1.0] * 2, disturbed=7))
    assert (verdict.status, verdict.value, verdict.turns, verdict.disturbed) == (goals.BUSY, None, 2, 7)


def test_what_was_not_measured_is_not_judged():
    goal = Goal("op", others=("PyTorch",), least=1.0)
    assert judge(goal, None).status == goals.LATE
    wrong = rows(ours=[1.0] * 3, PyTorch=[9.0] * 3)
    wrong["ours"]["status"] = "wrong: errors"
    assert judge(goal, wrong).status == goals.FAILED and judge(goal, wrong).reason == "ours: wrong: errors"
    not_here = judge(Goal("op", others=("PyTorch",), least=1.0, not_here=NO_AMX), None)
    assert (not_here.status, not_here.reason) == (goals.NOT_HERE, NO_AMX)


def verdict(what, value, status=goals.MET):
    return Verdict(what, ">= 0.97 x PyTorch", status, value, value and (value, value), 3, 1, "PyTorch")


def test_many_workloads_are_judged_by_the_lowest():
    summary = worst_of("every op", ">= 0.97 x PyTorch", [verdict("a", 1.2), verdict("b", 0.98)])
    assert summary.status == goals.MET and summary.disturbed == 2
    assert summary.measured == "2 of 2 reach it; lowest: b, 0.98 x PyTorch (0.98, 0.98)"
    unjudged = verdict("c", None, goals.BUSY)
    summary = worst_of("every op", "", [verdict("a", 1.2), unjudged])
    assert summary.status == goals.BUSY and summary.measured.startswith("1 of 2 reach it, 1 not judged; lowest: a")
    missed = worst_of("every op", "", [verdict("a", 0.9, goals.MISSED), unjudged])
    assert missed.status == goals.MISSED
    failed = worst_of("every op", "", [verdict("a", 0.9, goals.MISSED), verdict("d", None, goals.FAILED)])
    assert failed.status == goals.FAILED
    assert worst_of("every op", "", [verdict("e", None, goals.NOT_HERE)]).status == goals.NOT_HERE


def applying(part, on):
    return [(goal.what, goal.expected) for case in PARTS[part](on) for goal in case.goals if goal.not_here is None]


def test_goals_follow_the_machine():
    assert ("segment, batch 8, float32", ">= 80% of multiply-adds alone") in applying("segment", AVX2)
    assert ("segment, batch 1, float32", ">= 1.8 x PyTorch float32") in applying("segment", AVX2)
    assert not any(
        "tiles" in expected or "PyTorch bfloat16" == expected[-16:] for _, expected in applying("train", AVX2)
    )
    amx = applying("segment", AMX)
    assert {
        ("segment, batch 1, bfloat16", ">= 4 x PyTorch bfloat16"),
        ("segment, batch 1, bfloat16", "<= 12.0 ms"),
        ("segment, batch 8, bfloat16", ">= 3 x PyTorch bfloat16"),
        ("segment, batch 32, bfloat16", ">= 55% of bfloat16 tiles alone"),
        ("segment, batch 32, float32", ">= 80% of multiply-adds alone"),
    } <= set(amx)
    assert ("training step, batch 8, bfloat16", ">= 2.5 x PyTorch bfloat16") in applying("train", AMX)
    assert ("training step, batch 8, float32", ">= 1.5 x PyTorch float32") in applying("train", AMX)
    published = dict.fromkeys(applying("published", AMX))
    for name in ("HRM", "TRM", "TRM mlp_t"):
        for way in ("evaluation", "training"):
            assert (f"patched {name}, batch 8, {way}, bfloat16", ">= 2 x unpatched") in published
            assert (f"patched {name}, batch 8, {way}, bfloat16", ">= 1 x unpatched") in published
            assert (f"patched {name}, batch 2, {way}, float32", ">= 1.2 x unpatched") in published
    assert all("float32" in what for what, _ in applying("published", AVX2))
    mixing = applying("mlp_t", AMX)
    assert ("TRM mlp_t, segment, batch 2, bfloat16", ">= 2.5 x PyTorch bfloat16") in mixing
    assert ("sudoku6, training step, batch 32, float32", ">= 1.5 x PyTorch float32") in mixing


def test_a_bfloat16_op_is_compared_with_both_of_pytorchs_dtypes():
    narrow = [case for case in PARTS["ops"](AVX2) if case.dtype is BF16]
    assert narrow and all(case.goals[0].others == ("PyTorch bfloat16", "PyTorch float32") for case in narrow)
    assert all(case.candidates["PyTorch float32"].dtype is F32 for case in narrow)
    measured = {case.workload.kind for case in PARTS["ops"](AVX2)}
    assert {"linear", "token_mixing", "transformer_block", "recurrent_cycles", "AdamATan2", "SparseSignSGD"} <= measured


def a_case(name, weight=1.0, not_here=None):
    goal = Goal(name, others=("PyTorch",), least=1.0, not_here=not_here)
    workload = Workload(name, lambda device, dtype, seed: (), lambda: [])
    return Case("ops", workload, F32, {}, (goal,), weight)


def test_every_op_can_be_checked(monkeypatch):
    small = partial(Size, width=16, heads=2, inner=8, layers=1)
    monkeypatch.setattr(cases, "Size", lambda batch, positions: small(batch, min(positions, 4)))
    workloads = [workload for workload, _ in cases.op_workloads(4)]
    assert {workload.kind for workload in workloads} == set(OPS)
    for workload in workloads:
        arguments = workload.make("cpu", torch.float32, 0)
        assert (
            max(
                Oracle(workload, lambda made=arguments: made, torch.float32).errors(
                    workload.call(on_backend("reference", workload.op), arguments)
                )
            )
            < 1e-5
        )


def test_every_case_gets_its_share_of_what_is_left():
    a, b, c = a_case("a", 1), a_case("b", 3), a_case("c", 4)
    assert run.share(a, [b, c], 80) == 10
    assert run.share(b, [c], 70) == 30
    assert run.share(c, [], 55) == 55


def test_the_time_is_kept(monkeypatch):
    """With a simulated clock: the second case takes longer than all the time, so the third is not measured."""
    clock = {"now": 100.0}
    took = {"a": 1.0, "b": 20.0, "c": 1.0}
    untils = {}

    def measured(case, until):
        untils[case.workload.name] = until - clock["now"]
        clock["now"] += took[case.workload.name]
        return rows(ours=[1.0] * 3, PyTorch=[2.0] * 3)

    monkeypatch.setattr(run.time, "perf_counter", lambda: clock["now"])
    some = [a_case("a"), a_case("not here", not_here=NO_AMX), a_case("b"), a_case("c")]
    monkeypatch.setattr(run, "PARTS", {"ops": lambda machine: iter(some), "other": lambda machine: iter([a_case("d")])})
    shown = []
    result = run.run(["ops"], AVX2, 9.0, shown.append, run.Tools(measured, lambda: False))
    assert [one.status for one in result.verdicts] == [goals.MET, goals.NOT_HERE, goals.MET, goals.LATE]
    assert untils == {"a": 3.0, "b": 4.0} and result.seconds == 21.0
    assert shown == [f"  {name}: 2.00 x PyTorch (2.00, 2.00)" for name in "ab"]


def test_a_busy_machine_is_asked_again_later(monkeypatch):
    """Busy at the first three questions: a, b and c wait, and are measured in the second round."""
    order, busy = [], iter([True, True, True, False, False, False])

    def measured(case, until):
        order.append(case.workload.name)
        return rows(ours=[1.0] * 3, PyTorch=[2.0] * 3)

    monkeypatch.setattr(run, "PARTS", {"ops": lambda machine: map(a_case, "abc")})
    result = run.run(["ops"], AVX2, 60.0, tools=run.Tools(measured, lambda: next(busy)))
    assert order == ["a", "b", "c"] and [one.status for one in result.verdicts] == [goals.MET] * 3
    result = run.run(["ops"], AVX2, 60.0, tools=run.Tools(measured, lambda: True))
    assert [one.status for one in result.verdicts] == [goals.BUSY] * 3 and len(order) == 3 and not result.samples


def test_waiting_threads_mean_a_busy_machine(monkeypatch):
    waits = iter([0.0, 0.09, 1.0, 1.09, 2.0, 2.09])
    monkeypatch.setattr(run, "seconds_waited", lambda: next(waits))
    assert run.is_busy()
    monkeypatch.setattr(run, "seconds_waited", lambda: 7.0)
    assert not run.is_busy()


def test_the_files_say_where_and_what(monkeypatch, tmp_path, capsys):
    small = op_workload("swiglu", Size(1, 3, inner=8), itemsize=4)

    def part(machine):
        candidates = {"ours": Candidate(small.op), "PyTorch": Candidate(small.op)}
        yield Case("ops", small, F32, candidates, (Goal("swiglu", others=("PyTorch",), least=0.0),), 1.0, "every op")
        yield a_case("elsewhere", not_here=NO_AMX)

    monkeypatch.setattr(run, "PARTS", {"ops": part})
    monkeypatch.setattr("bench.turns.CALM", 1e9)  # the load of other tests does not matter here
    monkeypatch.setattr(run, "is_busy", lambda: False)
    monkeypatch.setattr(command, "available_backends", lambda: {"cpu": None})
    assert command.main(["--only", "ops", "--minutes", "0.01", "--write", str(tmp_path / "goals")]) == 0
    content = json.loads((tmp_path / "goals" / "cpu_goals.json").read_text())
    described = content["machine"]
    assert described["cpu"]["model"] and described["versions"]["torch"] == torch.__version__
    assert {"instruction_set", "bfloat16_instruction_set", "torch_capability", "threads", "date"} <= described.keys()
    assert [one["status"] for one in content["verdicts"]] == [goals.NOT_HERE, goals.MET]
    (sample,) = content["samples"]
    assert len(sample["rows"]["ours"]["times"]) >= 3 and max(sample["rows"]["ours"]["error"]) < 1e-5
    text = (tmp_path / "goals" / "cpu_goals.md").read_text()
    assert "| every op | >= 0 x PyTorch | 1 of 1 reach it; lowest: swiglu, " in text
    assert "does not apply, this CPU has no AMX: elsewhere >= 1 x PyTorch" in text
    assert "every op" in capsys.readouterr().out


def test_a_missed_goal_is_an_exit_code(monkeypatch):
    result = run.Result(verdicts=[verdict("op", 0.5, goals.MISSED)])
    monkeypatch.setattr(command, "run", lambda *arguments: result)
    monkeypatch.setattr(command, "available_backends", lambda: {"cpu": None})
    assert command.main([]) == 1
    result.verdicts[0] = verdict("op", None, goals.BUSY)
    assert command.main([]) == 0
    monkeypatch.setattr(command, "available_backends", lambda: {"cpu": "not built"})
    assert command.main([]) == 2


def test_the_table_shows_goals_that_apply_and_reasons_of_the_others():
    text = as_text([verdict("op", 1.25), Verdict("other", ">= 2 x PyTorch", goals.NOT_HERE, reason=NO_AMX)])
    cells = re.split("  +", text.splitlines()[1])
    assert cells == ["op", ">= 0.97 x PyTorch", "1.25 x PyTorch (1.25, 1.25)", "3, 1 disturbed", "met"]
    assert text.endswith("does not apply, this CPU has no AMX: other >= 2 x PyTorch")


def test_the_machine_is_read_from_its_flags():
    described = {"cpu": {"isa": ["avx2", "amx_bf16"]}, "torch_bfloat16": True}
    assert machine.machine_of(described) == AMX and AMX.no_amx is None and AVX2.no_amx == NO_AMX


def test_only_the_first_rows_of_a_large_batch_are_checked():
    """Right rows pass; a wrong first row is found, a wrong last row is not looked at."""

    def make(device, dtype):
        config = {"seq_len": 8, "vocab_size": 5, "hidden_size": 32, "num_heads": 2, "forward_dtype": "float32"}
        return models.random_model(HRMConfig.parse(config | {"H_layers": 1, "L_layers": 1}), 5, device)

    def wrong(row):
        def op(*arguments):
            results = [result.clone() for result in workload.op(*arguments)]
            results[0][row] += 1.0
            return results

        return {"ours": Candidate(op), "PyTorch": Candidate(workload.eager)}

    workload = segment_of("segment", make, batch=5, positions=8)
    for row, status in ((0, "wrong"), (4, "ok")):
        checked, candidates = cases._checked(workload, wrong(row), rows=3)
        measured = measure(checked, "cpu", F32, candidates, lambda turn: 1)
        assert measured["ours"]["status"].startswith(status) and measured["PyTorch"]["status"] == "ok"
    assert cases._checked(workload, wrong(0), rows=5)[0] is workload


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["hrm", "trm", "mlp_t"])
def test_the_published_code_gives_the_same_after_patch(name, training):
    """Values and gradients; the comparison of the first call gives no module back."""
    common = {"seq_len": 8, "vocab_size": 5, "puzzle_emb_ndim": 32, "hidden_size": 32, "num_heads": 2}
    common |= {"L_layers": 1, "L_cycles": 1, "H_cycles": 2, "forward_dtype": "float32"}
    config = HRMConfig.parse(common | {"H_layers": 1}) if name == "hrm" else None
    if config is None:
        mixes = name == "mlp_t"
        config = TRMConfig.parse(
            common | {"puzzle_emb_len": 1, "mlp_t": mixes, "pos_encodings": "none" if mixes else "rope"}
        )
    workload = patched(name, lambda device, dtype: models.random_model(config, 3, device), training)
    plain, replaced, *_ = arguments = workload.make("cpu", F32, 0)
    number = sum(map(is_replaced, replaced.modules()))
    assert number > 0
    workload = replace(workload, make=lambda *_: arguments)
    candidates = {"ours": Candidate(workload.op), "unpatched": Candidate(workload.eager)}
    measured = measure(workload, "cpu", F32, candidates, lambda turn: 1)
    assert [row["status"] for row in measured.values()] == ["ok", "ok"]
    assert len(measured["ours"]["error"]) == (4 if not training else 1 + sum(1 for _ in plain.inner.parameters()))
    assert hrm_kernels.unpatch(plain) == 0 and hrm_kernels.unpatch(replaced) == number


def test_a_case_that_cannot_be_checked_is_told_and_the_others_go_on():
    case = next(cases.segments(AVX2))

    def breaks(*arguments):
        raise RuntimeError("no float64")

    broken = replace(case, workload=replace(case.workload, eager=breaks))
    measured = run.measure_case(broken, until=0.0)
    assert judge(case.goals[0], measured).status == goals.FAILED

"""Settings, backends, and the end of an engine."""

import threading

import numpy as np
import pytest
import torch
from engine_rows import STEPS, tiny

import hrm.inference.engine.segment as segment_module
from hrm import Engine, InputError
from hrm.inference.engine import EngineError
from hrm.inference.halting import halts_by_q
from hrm_kernels import available_backends, explain, use_backend


def test_leaving_finishes_accepted_puzzles_and_restores_the_mode(puzzles):
    model = tiny().train()
    with Engine(model, slots=2, max_steps=STEPS) as engine:
        assert not model.training
        futures = [engine.submit(one) for one in puzzles[:8]]
    assert model.training and all(future.done() and future.result().steps for future in futures)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(puzzles[0])
    engine.close()


def test_leaving_with_an_error_cancels(gate, until):
    model = gate()

    def permit():
        until(lambda: engine._scheduler.queue.cancelling)
        model.permits.release(1)

    with pytest.raises(KeyError):
        with Engine(model, slots=1, max_steps=50) as engine:
            futures = [engine.submit(np.ones(16, int)) for _ in range(3)]
            assert model.entered.acquire(timeout=60)
            threading.Thread(target=permit).start()
            raise KeyError
    assert all(future.cancelled() for future in futures) and model.calls == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slots": 0}, "slots is 0, expected 1 or more"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"min_steps": 5, "max_steps": 4}, "min_steps is 5, more than max_steps 4"),
        ({"halt": "stable:0"}, "halt is 'stable:0', expected 'q', 'fixed', 'stable:K'"),
        ({"halt": "margin:much"}, "halt is 'margin:much'"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"slots": 1.5}, "slots is 1.5, expected an integer, 1 or more"),
        ({"max_steps": "3"}, "max_steps is '3', expected an integer"),
        ({"slots": True}, "slots is True, expected an integer"),
        ({"slots": -1}, "slots is -1, expected 1 or more"),
        ({"slots": float("nan")}, "slots is nan, expected an integer"),
        ({"slots": 10**9}, "slots is 1000000000: their states and logits take [0-9]+ MiB, and cpu has "),
        ({"slots": 10**400}, "slots is 1" + 400 * "0" + ": their states"),
        ({"max_steps": True}, "max_steps is True, expected an integer"),
        ({"max_steps": float("inf")}, "max_steps is inf, expected an integer"),
        ({"max_steps": 2**31}, "max_steps is 2147483648, expected at most 2147483647"),
        ({"min_steps": False}, "min_steps is False, expected an integer"),
        ({"queue_size": 2.0}, "queue_size is 2.0, expected an integer"),
    ],
)
def test_invalid_settings(arguments, message):
    threads = threading.active_count()
    with pytest.raises(InputError, match=message):
        Engine(tiny(), **arguments)
    with pytest.raises(ValueError, match="abacus"):
        Engine(tiny(), backend="abacus")
    assert threading.active_count() == threads


def test_slots_must_fit_in_memory(monkeypatch):
    monkeypatch.setattr(segment_module, "host_memory", lambda: 10**6)
    each = 4 * (4 * 17 * 32 + 16 * 6)  # states before and after a segment; logits
    most = 10**6 // each
    with pytest.raises(InputError, match=f"slots is {most + 1}: .* at most {most} fit"):
        Engine(tiny(), slots=most + 1)
    with Engine(tiny(), slots=np.int8(100)) as engine:  # 4 * slots overflows to a negative int8
        assert engine.queue_size == 400


def test_an_engine_runs_on_its_backend(puzzles):
    """The choice does not change the calling thread's, which an engine without a backend takes."""
    x, model, chosen = torch.zeros(1, 4), tiny(), []
    model.register_forward_pre_hook(lambda *_: chosen.append(explain("swiglu", x)))
    before = explain("swiglu", x)
    with Engine(model, slots=2, max_steps=2, backend="reference", halt=halts_by_q) as engine:
        assert engine.submit(puzzles[0]).result(timeout=60).error is None
        assert explain("swiglu", x) == before
    with use_backend("reference"):
        engine = Engine(model, slots=2, max_steps=2, halt=halts_by_q)
    with engine:
        assert engine.submit(puzzles[0]).result(timeout=60).error is None
    assert len(chosen) >= 2 and set(chosen) == {"reference"}


@pytest.mark.skipif(available_backends()["cpu"] is not None, reason="needs the CPU library")
def test_engines_with_different_backends_run_side_by_side(puzzles):
    """Each computes to the bit what it computes without the other."""
    x, names = torch.zeros(1, 4), ("cpu", "reference")

    def run(model, backend):
        # all puzzles start together, so that the reference computes the same matrix products in every run
        with Engine(model, slots=24, max_steps=STEPS, backend=backend) as engine:
            return [(one.tokens.tobytes(), one.steps, one.q_halt, one.q_continue) for one in engine.solve(puzzles)]

    expected = {name: run(tiny(), name) for name in names}
    assert expected["cpu"] != expected["reference"]  # in the last bits

    chosen, together, both_run = {name: [] for name in names}, {}, threading.Barrier(2)

    def run_beside_the_other(model, name):
        def before_segment(*_):
            if not chosen[name]:
                both_run.wait(60)
            chosen[name].append(explain("swiglu", x))

        model.register_forward_pre_hook(before_segment)
        together[name] = run(model, name)

    callers = [threading.Thread(target=run_beside_the_other, args=(tiny(), name)) for name in names]
    for one in callers:
        one.start()
    for one in callers:
        one.join(60)
    assert together == expected
    assert {name: set(seen) for name, seen in chosen.items()} == {"cpu": {"cpu"}, "reference": {"reference"}}


def test_engines_that_run_together_restore_mode_and_backend():
    model, x = tiny().train(), torch.zeros(1, 4)
    chosen = explain("swiglu", x)
    first = Engine(model, slots=2, backend="reference")
    second = Engine(model, slots=2, backend="reference")
    third = Engine(tiny(), slots=2)
    first.close()
    assert not model.training and explain("swiglu", x) == chosen
    second.close()
    second.close()
    assert model.training and explain("swiglu", x) == chosen
    third.close()
    with pytest.raises(AttributeError):
        Engine(object(), backend="reference")
    assert explain("swiglu", x) == chosen

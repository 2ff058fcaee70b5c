import time

import pytest
import torch

from bench import ceilings


@pytest.mark.skipif(ceilings.compiler() is None, reason="needs a C++ compiler")
def test_multiply_adds_are_as_many_as_asked_for(monkeypatch):
    done: list[float] = []
    run = ceilings._multiply_adds()

    def counting(iterations: int) -> float:
        done.append(run(iterations))
        return done[-1]

    monkeypatch.setattr(ceilings, "_multiply_adds", lambda: counting)
    alone = ceilings.multiply_adds(1e9, pieces=10)
    start = time.perf_counter()
    assert alone() == []
    one = done.pop(0)  # asked for how many operations an iteration has
    rate = sum(done) / (time.perf_counter() - start)
    assert len(done) == 10 and sum(done) == pytest.approx(1e9, abs=10 * one)
    assert rate < 1e13 * torch.get_num_threads()  # they were not optimised away

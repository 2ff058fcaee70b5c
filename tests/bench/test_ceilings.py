"""The floor of a cost, and the multiply-adds that measure the ceiling of arithmetic."""

import time

import pytest
import torch

from bench import fma
from bench.ceilings import CACHED_ELEMENTS, floor
from hrm_kernels.spec import Cost


def test_the_floor_is_the_tighter_limit():
    ceilings = {"copy_bytes_per_s": 1e9, "cached_copy_bytes_per_s": 4e9, "matmul_flops_per_s": 1e9}
    cached = 8 * CACHED_ELEMENTS
    assert floor(Cost(1e9, 0), ceilings) == (1.0, "memory")
    assert floor(Cost(cached, 0), ceilings) == (pytest.approx(cached / 4e9), "memory")
    assert floor(Cost(1e9, 3e9), ceilings) == (3.0, "arithmetic")
    assert floor(Cost(0, 3e9), ceilings | {"fma_flops_per_s": 2e9}) == (1.5, "arithmetic")


@pytest.mark.skipif(fma.compiler() is None, reason="needs a C++ compiler")
def test_the_number_of_multiply_adds_is_as_requested(monkeypatch):
    done: list[float] = []
    run = fma._run()

    def counting(iterations: int) -> float:
        done.append(run(iterations))
        return done[-1]

    monkeypatch.setattr(fma, "_run", lambda: counting)
    multiply_adds = fma.multiply_adds(1e9, pieces=10)
    start = time.perf_counter()
    assert multiply_adds() == []
    one = done.pop(0)  # a single iteration, to count its operations
    rate = sum(done) / (time.perf_counter() - start)
    assert len(done) == 10 and sum(done) == pytest.approx(1e9, abs=10 * one)
    assert rate < 1e13 * torch.get_num_threads()  # they were not optimised away

"""Measurements reach pytest-benchmark unchanged, with their share of the ceiling."""

import numpy as np

from bench import suite
from hrm_kernels.spec import Cost


def test_samples_reach_the_benchmark_unchanged():
    class Benchmark:
        """Stands in for the fixture of pytest-benchmark."""

        extra_info: dict = {}
        taken: list = []

        def pedantic(self, target, setup, rounds):
            for _ in range(rounds):
                setup()
                start = suite.clock()
                target()
                self.taken.append(suite.clock() - start)

    benchmark, samples = Benchmark(), list(np.random.default_rng(0).random(7))
    suite.report_samples(benchmark, samples, {"bytes": 3})
    assert benchmark.taken == samples and benchmark.extra_info == {"bytes": 3}


def test_share_of_the_ceiling():
    ceilings = {"copy_bytes_per_s": 1e9, "cached_copy_bytes_per_s": 4e9, "matmul_flops_per_s": 1e9}
    assert suite.against_ceilings(ceilings, 2.0, Cost(1e9, 0), "float32") == {"bound": "memory", "of_ceiling": 0.5}
    assert suite.against_ceilings(ceilings, 2.0, Cost(0, 0), "float32") == {"bound": None, "of_ceiling": None}

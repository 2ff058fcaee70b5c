"""Peak memory of a step, and of gradients through few and many cycles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.memory import peak_of

ROOT = Path(__file__).parents[2]


def test_peak_memory_of_a_step():
    def step():
        return torch.ones(16 << 20).sum()  # 64 MiB

    assert 60 << 20 < peak_of(step, "cpu") < 80 << 20


@pytest.mark.slow
def test_one_step_memory_is_flat_where_full_grows():
    def peak(gradient, cycles):
        command = [sys.executable, "-m", "bench.memory", "eager", gradient, str(cycles)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
        )
        return json.loads(done.stdout)["peak_bytes"]

    flat, grows = [peak("one_step", n) for n in (2, 8)], [peak("full", n) for n in (2, 8)]
    assert flat[1] < 1.3 * flat[0] and grows[1] > 2 * grows[0]

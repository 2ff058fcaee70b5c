"""How long a user waits before anything runs: importing, the first call, the command line.

In fresh processes, which take turns.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bench import suite
from bench.suite import Setup

ROOT = Path(__file__).parents[1]

FIRST_CALL = """
import torch, hrm_kernels
x = torch.randn(8, 82, 512, device={device!r})
with hrm_kernels.use_backend({backend!r}):
    y = hrm_kernels.add_rms_norm(x, x)
z = 2 * x.double()
assert (y.double() - z * (z.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).abs().max() < 1e-5
"""


def environment() -> dict[str, str]:
    """Of a process that imports bench and the packages from here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def programs(setup: Setup) -> dict[str, list[str]]:
    """What is run, by name."""
    python = [sys.executable, "-c"]
    backends = {"cpu": ["reference", "cpu"], "cuda": ["reference", "triton", "cuda"]}[setup.device]
    return {
        "import torch": [*python, "import torch"],
        "import hrm_kernels": [*python, "import hrm_kernels"],
        "import hrm": [*python, "import hrm"],
        **{
            f"first call, {backend}": [*python, FIRST_CALL.format(device=setup.device, backend=backend)]
            for backend in backends
        },
        "hrm --help": [sys.executable, "-m", "hrm", "--help"],
    }


@pytest.fixture(scope="module")
def samples(request: pytest.FixtureRequest) -> dict[str, list[float] | str]:
    """Seconds of each program, measured in turns; or why there are none."""
    setup = request.getfixturevalue("setup")
    found: dict[str, list[float] | str] = {name: [] for name in programs(setup)}
    for turn in range(8 if setup.full else 4):
        for name, program in programs(setup).items():
            times = found[name]
            if isinstance(times, str):
                continue
            start = time.perf_counter()
            done = subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True)
            if done.returncode:
                found[name] = done.stderr.strip().splitlines()[-1]
            elif turn:  # the first brings the files into memory
                times.append(time.perf_counter() - start)
    return found


def test_import(
    benchmark: Any,
    setup: Setup,
    unmeasured: Callable[[str, str, str, bool], NoReturn],
    samples: dict[str, list[float] | str],
    parameter: str,
) -> None:
    times = samples[parameter]
    if isinstance(times, str):
        unmeasured(parameter, "ours", times, "BackendUnavailable" not in times)
    information = {"suite": "import", "workload": parameter, "candidate": "ours", "kind": "import"}
    suite.hand_over(benchmark, times, {**information, "device": setup.device})


def parameters(setup: Setup) -> list[str]:
    return list(programs(setup))

"""How long a user waits before anything runs: importing, the first call, the command line.

Each program runs in a fresh process; the programs take turns.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from bench import processes, suite
from bench.setup import Setup

FIRST_CALL = """
import torch, hrm_kernels
x = torch.randn(8, 82, 512, device={device!r})
with hrm_kernels.use_backend({backend!r}):
    y = hrm_kernels.add_rms_norm(x, x)
z = 2 * x.double()
assert (y.double() - z * (z.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).abs().max() < 1e-5
"""


def programs(setup: Setup) -> dict[str, list[str]]:
    """The commands, by name."""
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
    """By program, its seconds in each turn, or why there are none."""
    setup = request.getfixturevalue("setup")
    measured: dict[str, list[float] | str] = {name: [] for name in programs(setup)}
    for turn in range(8 if setup.full else 4):
        for name, program in programs(setup).items():
            times = measured[name]
            if isinstance(times, str):
                continue
            start = time.perf_counter()
            done = processes.run(program)
            if done.returncode:
                measured[name] = processes.error_of(done)
            elif turn:  # the first turn reads the files into memory
                times.append(time.perf_counter() - start)
    return measured


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
    suite.report_samples(benchmark, times, {**information, "device": setup.device})


def parameters(setup: Setup) -> list[str]:
    return list(programs(setup))

"""Peak memory of a gradient as the number of cycles grows: one-step is flat, backpropagation through all is linear.

Each in a fresh process (:mod:`bench.memory`), which checks the gradients against float64.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bench import suite
from bench.bench_import import environment
from bench.memory import BATCH, GRADIENTS, POSITIONS
from bench.suite import BACKENDS, Setup

ROOT = Path(__file__).parents[1]


def parameters(setup: Setup) -> list[tuple[str, str, int, int]]:
    """Backend, gradient, cycles, layers of a module."""
    backends = ["eager", *(name for name in BACKENDS[setup.device].values() if name)]
    gradients = GRADIENTS if setup.full else GRADIENTS[:2]
    cycles, layers = ((1, 2, 4, 8, 16), 4) if setup.full else ((2, 4, 8), 1)
    return [(backend, gradient, n, layers) for gradient in gradients for backend in backends for n in cycles]


def test_peak_memory(
    benchmark: Any,
    setup: Setup,
    unmeasured: Callable[[str, str, str, bool], NoReturn],
    parameter: tuple[str, str, int, int],
) -> None:
    backend, gradient, cycles, layers = parameter
    command = [sys.executable, "-m", "bench.memory", backend, gradient, str(cycles), "--layers", str(layers)]
    command += ["--device", setup.device, "--dtype", str(setup.dtype).removeprefix("torch.")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    name = f"{gradient}, {cycles} cycles"
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        unmeasured(name, backend, reason, "BackendUnavailable" not in reason)
    found = json.loads(done.stdout)
    information = {
        "suite": "memory",
        "workload": name,
        "candidate": backend,
        "kind": gradient,
        "cycles": cycles,
        "layers": layers,
        "batch": BATCH,
        "positions": POSITIONS,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "device": setup.device,
        "peak_bytes": found["peak_bytes"],
        "error": [found["error"]],
    }
    suite.hand_over(benchmark, [found["seconds"]], information)

"""Peak memory of a gradient as the number of cycles grows: one-step is flat, full backpropagation grows linearly.

Each measurement runs in a fresh process (:mod:`bench.memory`), which checks the gradients against float64.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bench import processes, suite
from bench.candidates import BACKENDS
from bench.memory import GRADIENTS, SIZE
from bench.setup import Setup


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
    dtype = str(setup.dtype).removeprefix("torch.")
    command = [sys.executable, "-m", "bench.memory", backend, gradient, str(cycles), "--layers", str(layers)]
    done = processes.run([*command, "--device", setup.device, "--dtype", dtype])
    name = f"{gradient}, {cycles} cycles"
    if done.returncode:
        reason = processes.error_of(done)
        unmeasured(name, backend, reason, "BackendUnavailable" not in reason)
    measured = json.loads(done.stdout)
    information = {
        "suite": "memory",
        "workload": name,
        "candidate": backend,
        "kind": gradient,
        "cycles": cycles,
        "layers": layers,
        "batch": SIZE.batch,
        "positions": SIZE.positions,
        "dtype": dtype,
        "device": setup.device,
        "peak_bytes": measured["peak_bytes"],
        "error": [measured["error"]],
    }
    suite.report_samples(benchmark, [measured["seconds"]], information)

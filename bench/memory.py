"""The peak memory of one gradient, in a process of its own: ``python -m bench.memory cpu one_step 8``.

Prints a JSON line: ``peak_bytes`` (what the step needs on top of what was there before it) and ``seconds``. The model
repeats a cycle of two L updates and one H update; weights and inputs are the same for every way to differentiate it.
"""

import argparse
import ctypes
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import published, timing
from bench.workloads import HEADS, D
from hrm_kernels import fixed_point
from hrm_kernels.nn import ReasoningModule, rope_tables

Updates = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
BATCH, POSITIONS = 2, 82
GRADIENTS = ("one_step", "full", "recompute")


class Model:
    """Both modules, and how a cycle of theirs runs."""

    def __init__(self, device: str, dtype: torch.dtype, layers: int, eager: bool) -> None:
        torch.manual_seed(0)
        self.H, self.L = (ReasoningModule(layers, D, HEADS).to(device, dtype) for _ in range(2))
        self.x, self.z_H, self.z_L = torch.randn(3, BATCH, POSITIONS, D, device=device, dtype=dtype)
        self.tables, self.eager = rope_tables(POSITIONS, D // HEADS, device=device), eager

    def _update(self, module: ReasoningModule, z: torch.Tensor, injection: torch.Tensor) -> torch.Tensor:
        if self.eager:
            return published.module(module, z, injection, *self.tables, 1e-5)
        return module(z, injection, *self.tables)

    def gradient(self, gradient: str, cycles: int) -> list[torch.Tensor]:
        """Of the weights, after so many cycles."""

        def update_L(state: tuple[torch.Tensor, ...], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return state[0], self._update(self.L, state[1], state[0] + x)

        def update_H(state: tuple[torch.Tensor, ...], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self._update(self.H, state[0], state[1]), state[1]

        z_H, _ = fixed_point(
            [update_L, update_L, update_H],
            (self.z_H, self.z_L),
            self.x,
            steps=3 * cycles,
            gradient="one_step" if gradient == "one_step" else "full",
            recompute=gradient == "recompute",
        )
        weights = [*self.H.parameters(), *self.L.parameters()]
        return list(torch.autograd.grad(z_H.square().mean() + z_H.mean(), weights))


def peak_of(step: Callable[[], object], device: str) -> int:
    """Bytes that ``step`` needs at its peak on top of what is there; of the whole process on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # not ru_maxrss: a child starts with the one of its parent
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is there
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def probe(backend: str, gradient: str, cycles: int, layers: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Measure, then check the gradients against float64.

    Raises:
        ValueError: they are wrong.
    """
    model = Model(device, dtype, layers, eager=backend == "eager")
    run = timing.on_backend("reference" if backend == "eager" else backend, model.gradient)
    run("one_step", 1)  # what is set up once
    gradients: list[torch.Tensor] = []
    start = time.perf_counter()

    def step() -> None:
        gradients.extend(run(gradient, cycles))
        timing.synchronize(device)

    peak = peak_of(step, device)
    seconds = time.perf_counter() - start
    plain, exact = Model(device, dtype, layers, eager=True), Model(device, torch.float64, layers, eager=True)
    for ours, theirs in ((exact.H, model.H), (exact.L, model.L), (plain.H, model.H), (plain.L, model.L)):
        ours.load_state_dict(theirs.state_dict())
    exact.x, exact.z_H, exact.z_L = (t.double() for t in (model.x, model.z_H, model.z_L))
    plain.x, plain.z_H, plain.z_L = model.x, model.z_H, model.z_L
    want = exact.gradient(gradient, cycles)
    # the largest of all gradients: cycles of an untrained model amplify every rounding, in some more than in others
    error = max(timing.errors(gradients, want))
    allowed = 2 * max(timing.errors(plain.gradient(gradient, cycles), want)) + timing.slack(dtype)
    if not error <= allowed:
        raise ValueError(f"gradients are wrong: error {error} against float64, allowed {allowed}")
    return {"peak_bytes": peak, "seconds": seconds, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.memory", description=__doc__)
    parser.add_argument("backend", help="eager, or one of ours")
    parser.add_argument("gradient", choices=GRADIENTS)
    parser.add_argument("cycles", type=int)
    parser.add_argument("--layers", type=int, default=1, help="of each module; default: %(default)s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=timing.DTYPES)
    options = parser.parse_args()
    found = probe(
        options.backend,
        options.gradient,
        options.cycles,
        options.layers,
        options.device,
        timing.DTYPES[options.dtype],
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

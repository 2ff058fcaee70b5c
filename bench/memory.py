"""Measure the peak memory of one gradient in this process: ``python -m bench.memory cpu one_step 8``.

Prints a JSON line: ``peak_bytes`` (what the step allocates beyond what the process held before), ``seconds`` and
``error`` (against float64). The model repeats a cycle of two L updates and one H update; weights and inputs are the
same for every kind of gradient.
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

from bench import published
from bench.accuracy import errors, tolerance
from bench.measure import DTYPES
from bench.sizes import EPS, SHORT, Size
from bench.turns import synchronize
from bench.workload import on_backend
from hrm_kernels import fixed_point
from hrm_kernels.nn import ReasoningModule, rope_tables

SIZE = Size(batch=2, positions=SHORT)
GRADIENTS = ("one_step", "full", "recompute")

State = tuple[torch.Tensor, ...]


class Model:
    """Both modules, and inputs for their cycles."""

    def __init__(self, device: str, dtype: torch.dtype, layers: int, eager: bool) -> None:
        torch.manual_seed(0)
        D, heads = SIZE.width, SIZE.heads
        self.H, self.L = (ReasoningModule(layers, D, heads).to(device, dtype) for _ in range(2))
        self.x, self.z_H, self.z_L = torch.randn(3, SIZE.batch, SIZE.positions, D, device=device, dtype=dtype)
        self.tables, self.eager = rope_tables(SIZE.positions, D // heads, device=device), eager

    def take_values(self, other: "Model") -> None:
        """Copy the weights and inputs of ``other``, in this model's dtype."""
        dtype = self.x.dtype
        self.H.load_state_dict(other.H.state_dict())
        self.L.load_state_dict(other.L.state_dict())
        self.x, self.z_H, self.z_L = (t.to(dtype) for t in (other.x, other.z_H, other.z_L))

    def _update(self, module: ReasoningModule, z: torch.Tensor, injection: torch.Tensor) -> torch.Tensor:
        if self.eager:
            return published.module(module, z, injection, *self.tables, EPS)
        return module(z, injection, *self.tables)

    def gradient(self, gradient: str, cycles: int) -> list[torch.Tensor]:
        """Gradients of the weights after ``cycles`` cycles."""

        def update_L(state: State, x: torch.Tensor) -> State:
            return state[0], self._update(self.L, state[1], state[0] + x)

        def update_H(state: State, x: torch.Tensor) -> State:
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
    """Bytes that ``step`` adds at its peak: on the GPU, or on a CPU in the whole process."""
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
    # not ru_maxrss: a child process starts with its parent's
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = _process_bytes("VmRSS")
    step()
    return _process_bytes("VmHWM") - before


def _process_bytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def probe(backend: str, gradient: str, cycles: int, layers: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Measure, then check the gradients against float64.

    Raises:
        ValueError: the gradients are wrong.
    """
    model = Model(device, dtype, layers, eager=backend == "eager")
    run = on_backend("reference" if backend == "eager" else backend, model.gradient)
    run("one_step", 1)  # allocates what is set up only once
    gradients: list[torch.Tensor] = []
    start = time.perf_counter()

    def step() -> None:
        gradients.extend(run(gradient, cycles))
        synchronize(device)

    peak = peak_of(step, device)
    seconds = time.perf_counter() - start
    eager, exact = Model(device, dtype, layers, eager=True), Model(device, torch.float64, layers, eager=True)
    eager.take_values(model)
    exact.take_values(model)
    expected = exact.gradient(gradient, cycles)
    # the largest of all gradients: cycles of an untrained model amplify rounding, in some gradients more than in others
    error = max(errors(gradients, expected))
    allowed = 2 * max(errors(eager.gradient(gradient, cycles), expected)) + tolerance(dtype)
    if not error <= allowed:
        raise ValueError(f"gradients are wrong: error {error} against float64, allowed {allowed}")
    return {"peak_bytes": peak, "seconds": seconds, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.memory", description=__doc__)
    parser.add_argument("backend", help="eager, or a backend of hrm_kernels")
    parser.add_argument("gradient", choices=GRADIENTS)
    parser.add_argument("cycles", type=int)
    parser.add_argument("--layers", type=int, default=1, help="of each module; default: %(default)s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    print(json.dumps(probe(options.backend, options.gradient, options.cycles, options.layers, options.device, dtype)))


if __name__ == "__main__":
    main()

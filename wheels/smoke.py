"""Check an installation: run this file from outside the checkout, with the Python of an environment that has a wheel.

It needs nothing but the package: the native library loads and computes, layers train, hrm solves a puzzle where it is
installed. It exits with a message where something is wrong.
"""

import importlib.util
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import hrm_kernels
from hrm_kernels import native
from hrm_kernels.nn import ReasoningModule, rope_tables
from hrm_kernels.optim import AdamATan2

CHECKOUT = Path(__file__).resolve().parent.parent


def check(holds: bool, problem: str) -> None:
    if not holds:
        sys.exit(f"smoke: {problem}")


def main() -> None:
    place = Path(hrm_kernels.__file__).resolve()
    check(not place.is_relative_to(CHECKOUT), f"hrm_kernels is {place}, in the checkout, not an installed one")
    reason = native.self_test("cpu")
    check(reason is None, f"the CPU library: {reason}")
    check(hrm_kernels.__version__[0].isdigit() and "+" not in hrm_kernels.__version__, "the version is not known")
    torch.manual_seed(0)
    gate_up = torch.randn(5, 64)
    gate, up = gate_up.chunk(2, -1)
    with hrm_kernels.use_backend("cpu"):
        error = (hrm_kernels.swiglu(gate_up) - F.silu(gate) * up).abs().max().item()
    check(error < 1e-5, f"swiglu differs by {error}")
    layer = ReasoningModule(num_layers=1, hidden_size=64, num_heads=2)
    optimizer, x, losses = AdamATan2(layer.parameters(), lr=1e-2), torch.randn(2, 9, 64), []
    for _ in range(5):
        loss = (layer(torch.zeros_like(x), x, *rope_tables(9, 32)) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    check(losses[-1] < losses[0], f"training does not lower the loss: {losses}")
    parts = ["hrm-kernels"]
    if importlib.util.find_spec("hrm"):
        import hrm

        solution = hrm.solve("sudoku4", "..1.3.......12..")
        check(solution.valid, f"sudoku4 did not solve its puzzle: {solution}")
        parts.append("hrm")
    print(f"smoke: {' and '.join(parts)} {hrm_kernels.__version__} work, from {place.parent}")


if __name__ == "__main__":
    main()

"""add_rms_norm and swiglu on the triton backend: error against float64 at most twice that of plain PyTorch."""

import pytest
import torch

import hrm_kernels as k

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned")

from hrm_kernels.ops.swiglu import triton_kernels as swiglu  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_gradient_for_one_input_only():
    x, y = torch.randn(2, 3, 64, device=DEVICE), torch.randn(2, 3, 64, device=DEVICE, requires_grad=True)
    with k.use_backend("triton"):
        (gradient,) = torch.autograd.grad(k.add_rms_norm(x, y).sum(), y)
    (want,) = torch.autograd.grad(k.add_rms_norm(x, y).sum(), y)
    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-6)


def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    x = torch.randn(4, 64, device=DEVICE, requires_grad=True)
    function = torch.compile(lambda x: k.swiglu(k.add_rms_norm(x, 2 * x)), fullgraph=True, backend="aot_eager")
    with k.use_backend("triton"):
        out = function(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        want = k.swiglu(k.add_rms_norm(x, 2 * x))
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(want.sum(), x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_backward_of_swiglu_returns_what_forward_did(dtype):
    gate_up, dout = torch.randn(3, 50, device=DEVICE).to(dtype), torch.randn(3, 25, device=DEVICE).to(dtype)
    gradient, out = swiglu.backward(dout, gate_up, True)
    assert torch.equal(out, swiglu.forward(gate_up))
    alone, nothing = swiglu.backward(dout, gate_up)
    assert torch.equal(gradient, alone) and nothing.numel() == 0


def test_launchers_are_registered():
    x = torch.randn(3, 64, device=DEVICE)
    ops = torch.ops.hrm_kernels
    torch.library.opcheck(ops.triton_add_rms_norm.default, (x, x, 1e-5, True))
    torch.library.opcheck(ops.triton_swiglu.default, (x,))

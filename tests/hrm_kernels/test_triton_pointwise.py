"""add_rms_norm and swiglu on the triton backend: error against float64 at most twice that of plain PyTorch."""

import pytest
import torch

import hrm_kernels as k

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])  # see design: traps
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1), (3, 17, 64), (2, 5, 512), (7, 768), (1, 82, 384), (0, 4, 64), (2, 1500), (9, 96)]


def run(op, inputs, dout, backend):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    with k.use_backend(backend):
        out = op(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout.to(out.dtype))]


def check(op, inputs, dout, epsilon):
    exact = run(op, [x.double() for x in inputs], dout, "reference")
    plain, ours = run(op, inputs, dout, "reference"), run(op, inputs, dout, "triton")
    for got, torch_own, want in zip(ours, plain, exact, strict=True):
        assert got.dtype == inputs[0].dtype and got.shape == want.shape
        if want.numel():
            error, allowed = ((x.double() - want).abs().max() for x in (got, torch_own))
            assert error <= 2 * allowed + epsilon * want.abs().max().clamp(min=1), f"{error:.2e} against {allowed:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("op", "count"), [(k.add_rms_norm, 2), (k.swiglu, 1)])
def test_against_float64(op, count, shape, dtype):
    torch.manual_seed(0)
    if op is k.swiglu:
        shape = (*shape[:-1], 2 * shape[-1])
    inputs = [torch.randn(shape, dtype=dtype, device=DEVICE) for _ in range(count)]
    dout = torch.randn_like(op(*inputs))
    check(op, inputs, dout, torch.finfo(dtype).eps)


def test_non_contiguous_inputs_and_inputs_stay():
    x, y = torch.randn(2, 6, 5, 64, device=DEVICE).transpose(1, 2)
    before = x.clone(), y.clone()
    check(k.add_rms_norm, [x, y], torch.randn_like(x), 1e-6)
    check(k.swiglu, [x], torch.randn_like(x[..., :32]), 1e-6)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_same_input_same_output():
    x = torch.randn(9, 512, device=DEVICE)
    with k.use_backend("triton"):
        assert torch.equal(k.add_rms_norm(x, x), k.add_rms_norm(x, x)) and torch.equal(k.swiglu(x), k.swiglu(x))


def test_gradient_for_one_input_only():
    x, y = torch.randn(2, 3, 64, device=DEVICE), torch.randn(2, 3, 64, device=DEVICE, requires_grad=True)
    with k.use_backend("triton"):
        (gradient,) = torch.autograd.grad(k.add_rms_norm(x, y).sum(), y)
    (want,) = torch.autograd.grad(k.add_rms_norm(x, y).sum(), y)
    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-6)


def test_float64_is_refused_with_the_reason():
    x = torch.randn(2, 4, dtype=torch.float64, device=DEVICE)
    with k.use_backend("triton"), pytest.raises(k.BackendUnavailable, match="swiglu.*not float64"):
        k.swiglu(x)


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


def test_launchers_are_registered():
    x = torch.randn(3, 64, device=DEVICE)
    ops = torch.ops.hrm_kernels
    torch.library.opcheck(ops.triton_add_rms_norm.default, (x, x, 1e-5, True))
    torch.library.opcheck(ops.triton_swiglu.default, (x,))

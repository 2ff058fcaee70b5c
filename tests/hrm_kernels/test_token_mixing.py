"""token_mixing: the mathematics in float64, every backend, gradients, registration, errors."""

import pytest
import torch

import hrm_kernels as k

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])  # see design: traps
needs_cpu = pytest.mark.skipif(k.available_backends()["cpu"] is not None, reason="there is no CPU library")
SHAPES = [(2, 17, 64, 96), (1, 1, 5, 3), (3, 97, 32, 256), (2, 28, 64, 256), (0, 4, 8, 16)]


def arguments(batch, positions, dim, inner, dtype=torch.float64, device=DEVICE):
    generator = torch.Generator().manual_seed(0)
    shapes = (((batch, positions, dim), 1.0), ((2 * inner, positions), positions**-0.5), ((positions, inner), 0.1))
    made = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape, scale in shapes)
    return [tensor.to(dtype).to(device).requires_grad_() for tensor in made]


def exact(x, gate_up, down, eps=1e-5):
    """Channel by channel."""
    out = torch.empty_like(x)
    inner = down.shape[1]
    for b in range(x.shape[0]):
        for c in range(x.shape[2]):
            t = x[b, :, c]
            gate, up = (gate_up @ t).split(inner)
            t = t + down @ (gate / (1 + torch.exp(-gate)) * up)
            out[b, :, c] = t / torch.sqrt((t * t).mean() + eps)
    return out


def run(inputs, dtype, backend):
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    with k.use_backend(backend):
        out = k.token_mixing(*inputs)
    weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64, device=out.device).view_as(out).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight)]


def test_reference_is_the_mathematics():
    inputs = arguments(2, 7, 5, 6, device="cpu")
    with torch.no_grad(), k.use_backend("reference"):
        torch.testing.assert_close(k.token_mixing(*inputs), exact(*inputs), rtol=1e-12, atol=1e-12)


def test_gradients():
    assert torch.autograd.gradcheck(k.token_mixing, arguments(2, 3, 4, 5, device="cpu"), atol=1e-7)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_against_float64(shape, dtype):
    pytest.importorskip("triton")
    check_against_float64(shape, dtype, "triton")


@needs_cpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 916, 8, 40)])
def test_cpu_against_float64(shape, dtype):
    check_against_float64(shape, dtype, "cpu", "cpu")


def check_against_float64(shape, dtype, backend, device=DEVICE):
    inputs = [tensor.to(dtype).double() for tensor in arguments(*shape, device=device)]  # what all of them get
    wanted = run(inputs, torch.float64, "reference")
    plain, ours = run(inputs, dtype, "reference"), run(inputs, dtype, backend)
    for got, own, want in zip(ours, plain, wanted, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        if want.numel():
            error, allowed = ((tensor.double() - want).abs().max() for tensor in (got, own))
            assert error <= 2 * allowed + 2 * torch.finfo(dtype).eps * want.abs().max(), (
                f"{error:.2e} > 2 x {allowed:.2e}"
            )
    again = run(inputs, dtype, backend)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.parametrize("backend", ["triton", pytest.param("cpu", marks=needs_cpu)])
def test_without_gradients_and_on_strided_input(backend):
    device = "cpu" if backend == "cpu" else DEVICE
    if backend == "triton":
        pytest.importorskip("triton")
    x, gate_up, down = (tensor.detach() for tensor in arguments(3, 9, 8, 4, torch.float32, device))
    with k.use_backend(backend):
        got = k.token_mixing(x.transpose(1, 2).contiguous().transpose(1, 2), gate_up.t().contiguous().t(), down)
        torch.testing.assert_close(got, k.token_mixing(x, gate_up, down), rtol=0, atol=0)
    with k.use_backend("reference"):
        torch.testing.assert_close(got, k.token_mixing(x, gate_up, down), rtol=1e-5, atol=1e-5)


def test_registration_and_compilation():
    inputs = arguments(2, 3, 4, 5, torch.float32, device="cpu")
    torch.library.opcheck(torch.ops.hrm_kernels.token_mixing.default, (*inputs, 1e-5))
    torch._dynamo.reset()
    compiled = torch.compile(k.token_mixing, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), k.token_mixing(*inputs))


@pytest.mark.parametrize("backend", ["triton", pytest.param("cpu", marks=needs_cpu)])
def test_it_compiles_in_one_graph(backend):
    device = "cpu" if backend == "cpu" else DEVICE
    if backend == "triton":
        pytest.importorskip("triton")
    inputs = arguments(2, 3, 4, 5, torch.float32, device)
    torch._dynamo.reset()
    with k.use_backend(backend):
        want = run(inputs, torch.float32, backend)
        compiled = torch.compile(k.token_mixing, fullgraph=True, backend="aot_eager")
        out = compiled(*inputs)
        weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64, device=device).view_as(out).to(out.dtype)
        got = [out, *torch.autograd.grad(out, inputs, weight)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


X, UP, DOWN = torch.zeros(2, 3, 4), torch.zeros(10, 3), torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((X[0], UP, DOWN), ValueError, r"x has shape \[3, 4\], expected \[B, S, D\]"),
        ((X, UP.half(), DOWN), TypeError, "gate_up is torch.float16, expected torch.float32 as x"),
        ((X, UP.t(), DOWN), ValueError, r"gate_up has shape \[3, 10\], expected \[2 I, S\] with I from down's"),
        ((X, UP, DOWN[:2]), ValueError, r"down has shape \[2, 5\], expected \[S, I\] = \[3, 5\]"),
        ((X, UP, DOWN, 0), ValueError, "eps is 0"),
    ],
)
def test_misfits(given, error, message):
    with pytest.raises(error, match=f"token_mixing: {message}"):
        k.token_mixing(*given)

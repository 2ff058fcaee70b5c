"""Blocks, modules and cycles on the triton backend: error against float64 at most twice that of plain PyTorch."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.nn import rope_tables

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned")

from hrm_kernels.ops.rope_attention.heads import Heads  # noqa: E402
from hrm_kernels.ops.transformer_block import triton_block  # noqa: E402
from hrm_kernels.ops.transformer_block import triton_kernels as fused  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])  # see design: traps


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def layer(dim, inner, seed):
    shapes = ((3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
    return [random(*shape, seed=seed + i, scale=shape[1] ** -0.5) for i, shape in enumerate(shapes)]


def within(got, plain, want, dtype, name):
    """The design's rule, relative to the size of the whole result."""
    error, allowed = ((x.double() - want).abs().max().item() for x in (got, plain))
    bound = 2 * allowed + 2 * torch.finfo(dtype).eps * want.abs().max().item()
    assert error <= bound, f"{name}: {error:.2e}, allowed {bound:.2e}"


def module(dtype, backend, positions=17, dim=64, inner=96, heads=2, batch=2, layers=2, grad=True, **options):
    """Output and gradients of a small module on one backend."""
    z, injection = random(batch, positions, dim, seed=1).to(dtype), random(batch, positions, dim, seed=2).to(dtype)
    weights = [k.BlockWeights(*(w.to(dtype) for w in layer(dim, inner, 10 * i + 3))) for i in range(layers)]
    inputs = [z, injection, *(w for block in weights for w in block)]
    for tensor in inputs:
        tensor.requires_grad_(grad)
    tables = rope_tables(positions, dim // heads, device=DEVICE)
    with k.use_backend(backend), torch.set_grad_enabled(grad):
        out = k.reasoning_module(z, injection, weights, *tables, heads, **options)
        if not grad:
            return [out]
        return [out.detach(), *torch.autograd.grad(out, inputs, random(*out.shape, seed=7).to(dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 37, 150])
def test_fused_products(rows, dtype):
    """Each product with its epilogue, with and without scaled rows; sizes that no tile divides."""
    dim, inner = 160, 208
    x, residual = random(rows, dim, seed=1).to(dtype), random(rows, dim, seed=2).to(dtype)
    qkv, o, gate_up, down = (w.to(dtype) for w in layer(dim, inner, 5))
    hidden = random(rows, inner, seed=3).to(dtype)

    def rstd(u):
        return (u.double().square().mean(1, keepdim=True) + 1e-5).rsqrt()

    u, sums = fused.linear_residual(x, o, residual, None, 1e-5)
    want = residual.double() + x.double() @ o.double().t()
    within(u, residual + x @ o.t(), want, dtype, "residual")
    torch.testing.assert_close(sums.double().sum(1), u.double().square().sum(1), rtol=1e-4, atol=1e-6)
    u2, _ = fused.linear_residual(hidden, down, u, sums, 1e-5)
    want = u.double() * rstd(u) + hidden.double() @ down.double().t()
    within(u2, (u * rstd(u)).to(dtype) + hidden @ down.t(), want, dtype, "scaled residual")

    within(fused.linear(u, qkv, None, 1e-5), u @ qkv.t(), u.double() @ qkv.double().t(), dtype, "linear")
    normed = (u.double() * rstd(u)).to(dtype)
    want = u.double() * rstd(u)
    within(fused.linear(u, qkv, sums, 1e-5), normed @ qkv.t(), want @ qkv.double().t(), dtype, "scaled linear")
    within(fused.normalize(u, sums, 1e-5), normed, want, dtype, "normalize")
    with k.use_backend("reference"):
        plain, exact = k.swiglu(normed @ gate_up.t()), k.swiglu(want @ gate_up.double().t())
    within(fused.linear_swiglu(u, gate_up, sums, 1e-5), plain, exact, dtype, "swiglu")


def test_fused_pass_equals_the_one_by_one_pass():
    """The five-launch block also in float32, where no call takes it by itself."""
    weights = [w.float() for i in range(2) for w in layer(64, 96, 10 * i)]
    tables = rope_tables(17, 32, device=DEVICE)
    shared = triton_block.Shared(2, Heads(*tables, 2), 1e-5)
    x = random(34, 64, seed=1).float()
    torch.testing.assert_close(
        triton_block.infer_fused(x, weights, shared), triton_block.infer(x, weights, shared), rtol=1e-5, atol=1e-5
    )


def test_launches_of_a_pass(monkeypatch):
    """At most five launches a block, and one to end the pass."""
    calls = []
    monkeypatch.setattr(triton_block.tuning, "choose", lambda *problem: "fused")  # whatever this device's table says
    for room, names in (
        (fused, ("linear", "linear_swiglu", "linear_residual", "normalize")),
        (triton_block.attention, ("forward",)),
    ):
        for name in names:
            plain = getattr(room, name)
            monkeypatch.setattr(room, name, lambda *a, plain=plain, name=name: calls.append(name) or plain(*a))
    module(torch.float16, "triton", grad=False, layers=3)
    assert len(calls) == 5 * 3 + 1


def test_what_it_cannot_serve():
    x, weights = torch.zeros(1, 2, 48, device=DEVICE), k.BlockWeights(*(w.float() for w in layer(48, 32, 0)))
    with k.use_backend("triton"), pytest.raises(k.BackendUnavailable, match="head_dim 32, 64 and 128, not 48"):
        k.transformer_block(x, weights, None, None, 1)
    x, weights = torch.zeros(1, 2, 32, device=DEVICE), k.BlockWeights(*(w.float() for w in layer(32, 32, 0)))
    cos, sin = rope_tables(2, 32, device=DEVICE)
    with k.use_backend("triton"), pytest.raises(k.BackendUnavailable, match="no gradient for sin; detach it"):
        k.transformer_block(x, weights, cos, sin.requires_grad_(), 1)

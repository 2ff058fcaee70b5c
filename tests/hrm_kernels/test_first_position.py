"""The module's update at its first position alone equals the whole update there, in values and gradients."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.nn import rope_tables
from hrm_kernels.ops.reasoning_module.first_position import first_position

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments(batch, positions, heads, head_dim, layers, dtype, seed=0):
    g, dim, inner = torch.Generator().manual_seed(seed), heads * head_dim, 48
    shapes = [(3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner)]
    blocks = [
        k.BlockWeights(
            *((torch.randn(s, generator=g) * s[1] ** -0.5).to(DEVICE, dtype).requires_grad_() for s in shapes)
        )
        for _ in range(layers)
    ]
    z, injection = (
        torch.randn(batch, positions, dim, generator=g).to(DEVICE, dtype).requires_grad_() for _ in range(2)
    )
    return z, injection, blocks


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("positions", "tables"), [(1, True), (9, True), (9, False)])
def test_values_and_gradients(backend, layers, positions, tables):
    dtype = torch.float64 if backend == "reference" else torch.float32
    z, injection, blocks = arguments(2, positions, 2, 32, layers, dtype)
    cos, sin = rope_tables(positions + 2, 32, device=DEVICE) if tables else (None, None)
    if tables:  # a first position that is turned, as in no model of ours
        cos, sin = cos.roll(-1, 0), sin.roll(-1, 0)
    inputs = [z, injection, *(w for block in blocks for w in block)]
    with k.use_backend(backend):
        want = k.reasoning_module(z, injection, blocks, cos, sin, 2)[:, 0]
        got = first_position(z, injection, blocks, cos, sin, 2)
        upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
        want_grads = torch.autograd.grad(want, inputs, upstream)
        got_grads = torch.autograd.grad(got, inputs, upstream)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(got, want, **tolerance)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("tables", [True, False])
def test_the_way_of_a_gpu(monkeypatch, tables):
    z, injection, blocks = arguments(2, 5, 2, 32, 2, torch.float64)
    cos, sin = rope_tables(7, 32, device=DEVICE) if tables else (None, None)
    inputs = [z, injection, *(w for block in blocks for w in block)]
    results = []
    for on_gpu in (False, True):
        monkeypatch.setattr("hrm_kernels.ops.reasoning_module.first_position.on_gpu", lambda x, on_gpu=on_gpu: on_gpu)
        with k.use_backend("reference"):
            out = first_position(z, injection, blocks, cos, sin, 2)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_an_empty_batch():
    z, injection, blocks = arguments(0, 5, 2, 32, 2, torch.float32)
    assert first_position(z, injection, blocks, *rope_tables(5, 32, device=DEVICE), 2).shape == (0, 64)


@pytest.mark.parametrize("positions", [1, 17])
def test_errors_in_bfloat16_are_at_most_twice_those_of_plain_pytorch(positions):
    z, injection, blocks = arguments(3, positions, 2, 32, 2, torch.bfloat16)
    tables = rope_tables(positions, 32, device=DEVICE)

    def values_and_gradients(dtype, backend):
        inputs = [
            t.detach().to(dtype).requires_grad_() for t in (z, injection, *(w for block in blocks for w in block))
        ]
        layers = [k.BlockWeights(*inputs[at : at + 4]) for at in range(2, len(inputs), 4)]
        with k.use_backend(backend):
            out = first_position(*inputs[:2], layers, *tables, 2)
        weight = torch.linspace(-1, 1, 64, device=DEVICE, dtype=torch.float64)
        return [one.double() for one in (out, *torch.autograd.grad((out.double().square() * weight).sum(), inputs))]

    want = values_and_gradients(torch.float64, "reference")
    plain, got = (values_and_gradients(torch.bfloat16, backend) for backend in ("reference", None))
    for exact, of_torch, ours in zip(want, plain, got, strict=True):
        assert (ours - exact).abs().max() <= 2 * (of_torch - exact).abs().max()

"""Triton's kernels on shapes that nobody chose: the design's rule of errors, forward and backward.

Triton has no float64 kernels, so ``gradcheck`` is for the reference alone, and these compare with it.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrm_kernels as k
from hrm_kernels.nn import SparseEmbedding, rope_tables
from hrm_kernels.ops.reasoning_module.first_position import first_position
from hrm_kernels.optim import AdamATan2, SparseSignSGD

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = st.sampled_from([torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else []))
SEEDS = st.integers(0, 2**31)
few = settings(deadline=None, max_examples=6, derandomize=True)  # the interpreter takes a second for some


def random(shape, seed, dtype=torch.float64, scale=1.0):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(
        DEVICE, dtype
    )


def results(function, inputs, upstream, backend, dtype):
    own = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
    with k.use_backend(backend):
        out = function(*own)
        return [out.detach(), *torch.autograd.grad(out, own, upstream.to(out.dtype))]


def check(function, inputs, dtype, seed, terms=1.0):
    """Ours against float64 at most twice as far as PyTorch's in the same dtype, on inputs that dtype can hold.

    ``terms`` is how large what is summed gets; where that cancels, results are much smaller and both errors luck.
    """
    inputs = [x.to(dtype).double() for x in inputs]
    with torch.no_grad(), k.use_backend("reference"):
        upstream = random(function(*inputs).shape, seed + 1).to(dtype).double()
    exact = results(function, inputs, upstream, "reference", torch.float64)
    plain = results(function, inputs, upstream, "reference", dtype)
    ours = results(function, inputs, upstream, "triton", dtype)
    for index, (got, own, want) in enumerate(zip(ours, plain, exact, strict=True)):
        assert got.isfinite().all() and got.shape == want.shape
        if want.numel():
            error, allowed = ((x.double() - want).abs().max().item() for x in (got, own))
            bound = 2 * allowed + 2 * torch.finfo(dtype).eps * max(terms, want.abs().max().item())
            assert error <= bound, f"result {index}: {error:.2e}, allowed {bound:.2e}"


@few
@given(st.lists(st.integers(0, 5), max_size=2), st.integers(1, 600), DTYPES, st.sampled_from([1e-2, 1.0, 30.0]), SEEDS)
def test_pointwise(leading, width, dtype, scale, seed):
    x, y = (random((*leading, width), seed + i, scale=scale) for i in range(2))
    check(k.add_rms_norm, [x, y], dtype, seed, terms=max(1, 1 / scale))  # the gradient is divided by the rms
    check(k.swiglu, [torch.cat((x, y), -1)], dtype, seed)


@few
@given(
    st.integers(1, 2), st.integers(1, 40), st.integers(1, 2), st.sampled_from([32, 64]), st.booleans(), DTYPES, SEEDS
)
def test_attention(batch, positions, heads, head_dim, turned, dtype, seed):
    tables = rope_tables(positions + 3, head_dim, device=DEVICE) if turned else (None, None)
    qkv = random((batch, positions, 3 * heads * head_dim), seed)
    check(lambda qkv: k.rope_attention(qkv, *tables, heads), [qkv], dtype, seed)


@settings(few, max_examples=3)
@given(st.integers(129, 200), SEEDS)
def test_long_attention(positions, seed):
    tables = rope_tables(positions, 32, device=DEVICE)
    check(lambda qkv: k.rope_attention(qkv, *tables, 1), [random((1, positions, 96), seed)], torch.float32, seed)


def block_weights(dim, inner, seed):
    shapes = ((3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
    return [random(shape, seed + i, scale=shape[1] ** -0.5) for i, shape in enumerate(shapes)]


@settings(few, max_examples=4)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 2), st.integers(1, 80), st.booleans(), DTYPES, SEEDS)
def test_blocks(batch, positions, heads, inner, recompute, dtype, seed):
    dim, tables = 32 * heads, rope_tables(positions, 32, device=DEVICE)
    weights = block_weights(dim, inner, seed)

    def function(z, injection, *weights):
        return k.reasoning_module(z, injection, [k.BlockWeights(*weights)], *tables, heads, recompute=recompute)

    check(function, [*(random((batch, positions, dim), seed + i) for i in (8, 9)), *weights], dtype, seed)


@few
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=2),
    st.integers(1, 300),
    st.sampled_from([torch.int32, torch.int64]),
    st.sampled_from([0.1, 1.0, 1e4]),
    SEEDS,
)
def test_loss_and_argmax(leading, vocabulary, integers, scale, seed):
    logits = random((*leading, vocabulary), seed, scale=scale)
    labels = torch.randint(0, vocabulary, leading, generator=torch.Generator().manual_seed(seed))
    labels = torch.where(random(leading, seed + 1).cpu() > 1, -100, labels).to(DEVICE, integers)
    check(lambda logits: k.stablemax_cross_entropy(logits, labels), [logits], torch.float32, seed)
    from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy_with_argmax

    with k.use_backend("triton"):
        _, largest = stablemax_cross_entropy_with_argmax(logits.float(), labels)
    picked = logits.float().gather(-1, largest.long().unsqueeze(-1)).squeeze(-1)
    assert torch.equal(picked, logits.float().amax(-1))


@few
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=2), min_size=1, max_size=5),
    st.booleans(),
    st.floats(0, 0.5),
    st.sampled_from([0.0, 0.3]),
    SEEDS,
)
def test_adam_atan2(shapes, capturable, lr, decay, seed):
    finals = []
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        params = [torch.nn.Parameter(random(shape, seed + i).to(dtype)) for i, shape in enumerate(shapes)]
        optimizer = AdamATan2(params, lr=lr, weight_decay=decay, capturable=capturable)
        optimizer.keep_copies(torch.float16)
        with k.use_backend(backend):
            for step in range(3):
                for i, p in enumerate(params):
                    p.grad = random(p.shape, seed + 100 * step + i + 50).to(dtype)
                optimizer.step()
        finals.append([p.detach().double() for p in params])
        for p in params:
            if p.numel():
                assert torch.equal(optimizer.copies[p], p.detach().half())
    for want, got in zip(*finals, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@few
@given(st.integers(1, 9), st.integers(1, 200), st.lists(st.integers(0, 8), min_size=1, max_size=40), SEEDS)
def test_sparse_sign_sgd(rows, width, ids, seed):
    finals = []
    ids = torch.tensor([i % rows for i in ids], device=DEVICE)
    gradient = random((len(ids), width), seed + 1).mul(4).round()  # sums are exact, so signs are too
    for backend in ("reference", "triton"):
        table = SparseEmbedding(rows, width).to(DEVICE).train()
        table.weights.copy_(random((rows, width), seed))
        (table(ids) * gradient.float()).sum().backward()
        with k.use_backend(backend):
            SparseSignSGD([table], lr=0.1, weight_decay=0.2).step()
        finals.append(table.weights.clone())
    torch.testing.assert_close(*finals, rtol=1e-6, atol=1e-7)


@settings(few, max_examples=3)
@given(st.integers(1, 2), st.integers(1, 5), SEEDS)
def test_gradients_of_the_reference(batch, positions, seed):
    """By finite differences, in float64: what everything above is measured against."""
    heads, head_dim = 2, 4
    dim, tables = heads * head_dim, rope_tables(positions, head_dim)
    z, injection, logits = (random((batch, positions, dim), seed + i).cpu().requires_grad_() for i in range(3))
    weights = [w.cpu().requires_grad_() for w in block_weights(dim, 6, seed)]
    labels = torch.arange(batch * positions).view(batch, positions) % dim

    def module(z, injection, *weights):
        return k.reasoning_module(z, injection, [k.BlockWeights(*weights)], *tables, heads)

    def first(z, injection, *weights):
        return first_position(z, injection, [k.BlockWeights(*weights)], *tables, heads)

    with k.use_backend("reference"):
        assert torch.autograd.gradcheck(module, (z, injection, *weights))
        assert torch.autograd.gradcheck(first, (z, injection, *weights))
        assert torch.autograd.gradcheck(lambda x: k.stablemax_cross_entropy(x, labels), (logits,))

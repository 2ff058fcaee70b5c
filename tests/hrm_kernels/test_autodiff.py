"""Ops under every mode of differentiation: the values of plain PyTorch in float64, or a refusal that says why."""

import pytest
import torch
import torch.autograd.forward_ad as forward_mode

import hrm_kernels as k
from hrm_kernels import backends
from hrm_kernels.nn import rope_tables
from hrm_kernels.ops.adam_atan2 import Step, adam_atan2
from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd

HEADS = 2
LABELS = torch.tensor([[1, -100, 7, 3, 2], [0, 3, 2, 5, 6]])


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(dim, inner, seed):
    shapes = ((3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
    return [random(*shape, seed=seed + i, scale=shape[1] ** -0.5) for i, shape in enumerate(shapes)]


def as_blocks(flat):
    return [k.BlockWeights(*flat[at : at + 4]) for at in range(0, len(flat), 4)]


def mixing_block(positions, width, dim, inner, seed):
    shapes = ((2 * width, positions), (positions, width), (2 * inner, dim), (dim, inner))
    return [random(*shape, seed=seed + i, scale=shape[1] ** -0.5) for i, shape in enumerate(shapes)]


def as_mixing_blocks(flat):
    return [k.MixingBlockWeights(*flat[at : at + 4]) for at in range(0, len(flat), 4)]


COS, SIN = rope_tables(5, 32)
X, Y = random(2, 5, 64, seed=1), random(2, 5, 64, seed=2)
CASES = {
    # op: (function of its differentiable tensors, those tensors in float64)
    "swiglu": (k.swiglu, [X]),
    "conv_swiglu": (k.conv_swiglu, [X, random(32, 2, seed=9), random(32, seed=10)]),
    "linear": (k.linear, [X, random(48, 64, seed=7, scale=0.1), random(48, seed=8)]),
    "add_rms_norm": (k.add_rms_norm, [X, Y]),
    "add_rms_norm of one tensor twice": (lambda x: k.add_rms_norm(x, x), [X]),
    "rope_attention": (lambda qkv: k.rope_attention(qkv, COS, SIN, HEADS), [random(2, 5, 192, seed=3)]),
    "stablemax_cross_entropy": (lambda x: k.stablemax_cross_entropy(x, LABELS), [X]),
    "token_mixing": (
        k.token_mixing,
        [X[:1, :, :8], random(24, 5, seed=4, scale=0.4), random(5, 12, seed=5, scale=0.3)],
    ),
    "transformer_block": (
        lambda x, *weights: k.transformer_block(x, k.BlockWeights(*weights), COS, SIN, HEADS),
        [X, *block(64, 48, 6)],
    ),
    "transformer_block, recomputed": (
        lambda x, *weights: k.transformer_block(x, k.BlockWeights(*weights), COS, SIN, HEADS, 1e-5, True),
        [X, *block(64, 48, 6)],
    ),
    "reasoning_module": (
        lambda z, injection, *flat: k.reasoning_module(z, injection, as_blocks(flat), COS, SIN, HEADS),
        [X, Y, *block(64, 48, 6), *block(64, 48, 16)],
    ),
    "transformer_block, mixing, recomputed": (
        lambda x, *weights: k.transformer_block(x, k.MixingBlockWeights(*weights), None, None, 0, 1e-5, True),
        [X, *mixing_block(5, 12, 64, 48, 6)],
    ),
    "reasoning_module, mixing": (
        lambda z, injection, *flat: k.reasoning_module(z, injection, as_mixing_blocks(flat), None, None, 0),
        [X, Y, *mixing_block(5, 12, 64, 48, 6), *mixing_block(5, 12, 64, 48, 16)],
    ),
    "reasoning_module, tied": (
        lambda z, *flat: k.reasoning_module(z, z, as_blocks([*flat, *flat]), None, None, HEADS),
        [X, *block(64, 48, 6)],
    ),
}


def leaves(case, dtype):
    return [tensor.to(dtype, copy=True).requires_grad_() for tensor in CASES[case][1]]


def exact(function, case):
    """``function(op, its tensors)`` in float64, by plain PyTorch."""
    with k.use_backend("reference"), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return function(CASES[case][0], leaves(case, torch.float64))


def plain(function, case, backend):
    with k.use_backend(backend):
        return function(CASES[case][0], leaves(case, torch.float32))


def assert_near(got, want, allowed=2e-5):
    """Within ``allowed`` of the largest element."""
    assert len(got) == len(want)
    for one, exact in zip(got, want, strict=True):
        assert one.shape == exact.shape
        error = (one.double() - exact).abs().max() / exact.abs().max()
        assert error < allowed, f"error {error:.2e}"


def penalised(op, given):
    """The gradient of a loss that has a gradient in it."""
    out = op(*given)
    gradients = torch.autograd.grad(out.sin().sum(), given, create_graph=True)
    return torch.autograd.grad(out.square().mean() + sum(g.square().sum() for g in gradients), given)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("case", CASES)
def test_second_order_gradients(case, backend):
    assert_near(plain(penalised, case, backend), exact(penalised, case))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("case", CASES)
def test_many_gradients_at_once(case, backend):
    """vmap over a backward of kernels: jacobian(vectorize=True)."""

    def batched(op, given):
        out = op(*given)
        rows = torch.stack([random(*out.shape, seed=seed).to(out.dtype) for seed in range(3)])
        return torch.autograd.grad(out, given, rows, is_grads_batched=True)

    assert_near(plain(batched, case, backend), exact(batched, case))


def tangent(op, given):
    with forward_mode.dual_level():
        duals = [forward_mode.make_dual(one.detach(), random(*one.shape, seed=9).to(one.dtype)) for one in given]
        return (forward_mode.unpack_dual(op(*duals)).tangent.clone(),)


@pytest.mark.filterwarnings("ignore:.*runs on backend 'reference'")
@pytest.mark.parametrize("case", CASES)
def test_forward_mode(case):
    def pushed(op, given):
        """The same by two backwards: the derivative of v J along v."""
        out = op(*given)
        v = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(out, given, v, create_graph=True)
        along = [random(*one.shape, seed=9).to(one.dtype) for one in given]
        return torch.autograd.grad(pulled, v, along)

    assert_near(plain(tangent, case, None), exact(pushed, case))


@pytest.mark.filterwarnings("ignore:.*runs on backend 'reference'")
@pytest.mark.parametrize("case", CASES)
def test_transforms_of_torch_func(case):
    def loss(op):
        return lambda *given: op(*given).sin().sum()

    def gradients(op, given):
        return torch.func.grad(loss(op), tuple(range(len(given))))(*(one.detach() for one in given))

    def by_autograd(op, given):
        return torch.autograd.grad(loss(op)(*given), given)

    def mapped(op, given):
        first = given[0].detach()
        return (torch.func.vmap(lambda x: op(x, *given[1:]))(torch.stack([first, 2 * first])),)

    def by_hand(op, given):
        return (torch.stack([op(given[0], *given[1:]), op(2 * given[0], *given[1:])]),)

    def jacobian(op, given):
        # of a few elements: the gradient's own Jacobian, forward over reverse, along one direction
        first, *rest = (one.detach() for one in given)
        gradient = torch.func.grad(lambda x: loss(op)(x, *rest))
        return torch.func.jvp(gradient, (first,), (random(*first.shape, seed=9).to(first.dtype),))

    def twice(op, given):
        (gradient,) = torch.autograd.grad(loss(op)(*given), given[:1], create_graph=True)
        along = random(*given[0].shape, seed=9).to(given[0].dtype)
        return gradient, torch.autograd.grad(gradient, given[0], along)[0]

    assert_near(plain(gradients, case, None), exact(by_autograd, case))
    assert_near(plain(mapped, case, None), exact(by_hand, case))
    assert_near(plain(jacobian, case, None), exact(twice, case))


def recurrent(x, y, *flat):
    return torch.stack(k.recurrent_cycles(x, y, x - y, as_blocks(flat), as_blocks(flat), COS, SIN, HEADS, 2, 2))


def test_recurrent_cycles_refuses_tangents():
    x, y, *flat = (one.float() for one in [X, Y, *block(64, 48, 6)])
    with forward_mode.dual_level(), pytest.raises(NotImplementedError, match="recurrent_cycles: .* tangent, which"):
        recurrent(forward_mode.make_dual(x, y), y, *flat)
    with forward_mode.dual_level(), pytest.raises(NotImplementedError, match="recurrent_cycles: .* tangent, which"):
        recurrent(x, y, *flat[:3], forward_mode.make_dual(flat[3], flat[3]))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_backend_that_was_asked_for_refuses(backend):
    x = X.float()
    with k.use_backend(backend):
        with pytest.raises(k.BackendUnavailable, match="swiglu.*inside a transform of torch.func"):
            torch.func.grad(lambda x: k.swiglu(x).sum())(x)
        with forward_mode.dual_level(), pytest.raises(k.BackendUnavailable, match="swiglu.*carries a tangent"):
            k.swiglu(forward_mode.make_dual(x, x))


def test_explain_says_why_the_reference_runs(capsys):
    with forward_mode.dual_level():
        assert k.explain("swiglu", forward_mode.make_dual(X.float(), X.float())) == "reference"
    assert "kernels have no forward-mode gradients, and an argument carries a tangent" in capsys.readouterr().out


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_transforms_of_torch_func_compile(transform):
    torch._dynamo.reset()
    x = X.float()
    function = {
        "grad": torch.func.grad(lambda x: k.swiglu(x).sin().sum()),
        "jvp": lambda x: torch.func.jvp(k.swiglu, (x,), (x,))[1],
        "vmap": torch.func.vmap(k.swiglu),
    }[transform]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(torch.compile(k.swiglu, backend="aot_eager")(x), k.swiglu(x))  # not remembered


def test_compiled_kernels_refuse_tangents():
    torch._dynamo.reset()
    compiled, x = torch.compile(k.swiglu, backend="aot_eager"), X.float()
    compiled(x)
    with forward_mode.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode gradients"):
        compiled(forward_mode.make_dual(x, x))


# ---- lazy negation


def negated(tensor):
    """``tensor``, whose memory holds its negative."""
    lazy = torch._neg_view(-tensor.detach())
    assert lazy.is_neg() and torch.equal(lazy, tensor)
    return lazy


class NegateGradient(torch.autograd.Function):
    """What came in; its gradient is lazily negated."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return torch._neg_view(-gradient)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("case", [*CASES, "recurrent_cycles"])
def test_lazy_negation(case, backend):
    op, given = CASES.get(case, (recurrent, [X, Y, *block(64, 48, 6)]))
    plain = [one.float().requires_grad_() for one in given]
    lazy = [negated(one.float()).requires_grad_() for one in given]
    with k.use_backend(backend):
        want, got = op(*plain), op(*lazy)
        assert torch.equal(got, want)
        if case != "recurrent_cycles":
            want = torch.autograd.grad(want.sin().sum(), plain)
            got = torch.autograd.grad(NegateGradient.apply(got).sin().sum(), lazy)
            assert all(map(torch.equal, got, want))


def test_lazy_negation_of_an_imaginary_part():
    x = torch.view_as_complex(random(5, 64, 2, seed=3).float())
    lazy = x.conj().imag
    assert lazy.is_neg()
    for backend in ("cpu", "triton"):
        with k.use_backend(backend):
            assert torch.equal(k.swiglu(lazy), k.swiglu(-x.imag.contiguous()))


def test_compiled_kernels_resolve_lazy_negation():
    torch._dynamo.reset()
    x = X.float()
    assert torch.equal(torch.compile(k.swiglu, fullgraph=True, backend="aot_eager")(negated(x)), k.swiglu(x))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("optimizer", ["adam", "sparse"])
def test_optimisers_leave_lazily_negated_tensors_to_the_reference(optimizer, backend, monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    start, gradient = random(4, 8).float(), random(4, 8, seed=1).float()

    def step(weights, gradient):
        if optimizer == "adam":
            state = [[torch.zeros_like(weights)], [torch.zeros_like(weights)], [torch.zeros(())]]
            adam_atan2(Step([weights], [gradient], *state, None, 0.1, (0.9, 0.9), 0.1, False, {}))
        else:
            sparse_sign_sgd(weights, torch.arange(4), gradient, 0.1, 0.1)
        return weights

    with k.use_backend(backend), pytest.raises(k.BackendUnavailable, match="a tensor is lazily negated"):
        step(start.clone(), negated(gradient))
    with pytest.warns(UserWarning, match="runs on backend 'reference'; .* lazily negated"):
        got = step(start.clone(), negated(gradient))
    with k.use_backend("reference"):
        assert torch.equal(got, step(start.clone(), gradient))
    with k.use_backend(backend), pytest.raises(k.BackendUnavailable, match="a tensor is lazily negated"):
        step(negated(start), gradient)  # kernels would write the negative of the new value
    if optimizer == "sparse":  # (PyTorch's lists of tensors refuse it)
        assert torch.equal(step(negated(start), gradient), got)


# ---- nothing in it


def empty_cases():
    for batch, positions in ((0, 5), (2, 0), (0, 0)):
        x, y = torch.zeros(batch, positions, 64), torch.zeros(batch, positions, 64)
        mixing = [torch.randn(24, positions), torch.randn(positions, 12)]
        flat = [one.float() for one in block(64, 48, 6)]
        labels = torch.zeros(batch, positions, dtype=torch.long)
        yield "swiglu", k.swiglu, [x]
        yield "linear", k.linear, [x, flat[0], torch.randn(192)]
        yield "add_rms_norm", k.add_rms_norm, [x, y]
        yield "rope_attention", lambda qkv: k.rope_attention(qkv, COS, SIN, HEADS), [torch.cat([x, x, y], -1)]
        yield (
            "stablemax_cross_entropy",
            lambda x, labels=labels: k.stablemax_cross_entropy(x, labels),
            [x],
        )
        yield "token_mixing", k.token_mixing, [x, *mixing]
        yield "transformer_block", CASES["transformer_block"][0], [x, *flat]
        yield "transformer_block, recomputed", CASES["transformer_block, recomputed"][0], [x, *flat]
        yield "reasoning_module", CASES["reasoning_module"][0], [x, y, *flat, *flat]
        yield "recurrent_cycles", recurrent, [x, y, *flat]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", [None, "cpu", "triton", "reference"])
@pytest.mark.parametrize(("case", "op", "given"), [pytest.param(*one, id=one[0]) for one in empty_cases()])
def test_empty_batches_and_sequences(case, op, given, backend):
    leaves = [one.clone().requires_grad_() for one in given]
    with k.use_backend(backend):
        out = op(*leaves)
        assert out.shape[-3:-1] == given[0].shape[:2] or out.shape == given[0].shape[:2]
        if case != "recurrent_cycles":
            out.sum().backward()
            assert all(torch.equal(one.grad, torch.zeros_like(one)) for one in leaves)

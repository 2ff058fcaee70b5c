"""The contract of ops beyond tests/hrm_kernels/test_conformance.py: messages, shared tensors, gradients that are 0."""

import numpy as np
import pytest
import torch
from conformance import converted, exact, make
from hypothesis import given, settings
from hypothesis import strategies as st

import hrm_kernels as k
from hrm_kernels.checks import Accepted
from hrm_kernels.spec import TINY, Random, Sizes


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    positions=st.integers(1, 40),
    heads=st.integers(1, 4),
    half=st.integers(1, 24),
    seed=st.integers(0, 1000),
)
def test_random_attention_shapes(batch, positions, heads, half, seed):
    arguments = converted(make("rope_attention", Sizes(batch, positions, H=heads, d=2 * half), seed), torch.float32)
    (want,) = exact("rope_attention", converted(arguments, torch.float64, of=torch.float32), gradients=False)
    for backend in ("cpu", "reference") if k.available_backends()["cpu"] is None else ("reference",):
        with k.use_backend(backend):
            got = k.rope_attention(*arguments)
        assert got.shape == (batch, positions, 2 * heads * half)
        if batch:
            error, scale = (got.double() - want).abs().max(), want.abs().max().clamp(min=1e-3)
            assert error <= 16 * torch.finfo(torch.float32).eps * scale


def test_recurrent_cycles_has_no_gradient():
    z = torch.randn(1, 3, 64)
    weights = k.BlockWeights(*(torch.randn(s).requires_grad_() for s in ((192, 64), (64, 64), (128, 64), (64, 64))))
    z_H, z_L = k.recurrent_cycles(z, z, z.clone().requires_grad_(), [weights], [weights], None, None, 2, 2, 2)
    assert not z_H.requires_grad and not z_L.requires_grad


def test_stablemax_gradient_is_zero_for_ignored_tokens():
    logits, labels = torch.randn(2, 5, 6, requires_grad=True), torch.tensor([[0, 1, 2, 3, 4], [-1] * 5])
    k.stablemax_cross_entropy(logits, labels, ignore_index=-1).sum().backward()
    assert logits.grad[0].abs().min() > 0 and logits.grad[1].abs().max() == 0


def test_linear_takes_any_leading_dimensions():
    x, weight, bias = converted(make("linear"), torch.float32)
    for own in (bias, None):
        assert torch.equal(k.linear(x[None], weight, own), k.linear(x, weight, own)[None])
        assert torch.equal(k.linear(x[0], weight, own), k.linear(x[:1], weight, own)[0])


@pytest.mark.parametrize("op", ["add_rms_norm", "linear", "reasoning_module"])
def test_the_same_tensor_twice_compiles(op):
    """torch.compile refuses it as two arguments of one autograd.Function."""
    torch._dynamo.reset()
    x, (*_, layers, _, _, _, _, _) = (
        Random(dtype=torch.float32)(3, 8, 8),
        converted(make("reasoning_module", TINY), torch.float32),
    )
    function = {
        "add_rms_norm": lambda x: k.add_rms_norm(x, x),
        "linear": lambda x: k.linear(x[0], x[0]),
        "reasoning_module": lambda x: k.reasoning_module(x, x, [layers[0], layers[0]], None, None, 2),
    }[op]
    found = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        own = x.clone().requires_grad_()
        out = call(own)
        found.append((out.detach(), *torch.autograd.grad(out.sin().sum(), own)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_inductor_agrees():
    torch._dynamo.reset()
    arguments = converted(make("reasoning_module", TINY), torch.float32)
    compiled = torch.compile(k.reasoning_module, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), k.reasoning_module(*arguments), rtol=1e-5, atol=1e-5)


X = torch.zeros(2, 3, 8)
W = k.BlockWeights(torch.zeros(24, 8), torch.zeros(8, 8), torch.zeros(12, 8), torch.zeros(8, 6))
MISFITS = {
    "not a tensor": (lambda: k.swiglu([1.0]), TypeError, "swiglu: gate_up is list, expected a torch.Tensor"),
    "integers": (
        lambda: k.swiglu(torch.zeros(4, dtype=torch.int32)),
        TypeError,
        "gate_up is torch.int32, expected float32",
    ),
    "odd": (
        lambda: k.swiglu(torch.zeros(2, 5)),
        ValueError,
        r"shape \[2, 5\], expected \[..., 2 I\] with I >= 1; pass packed \[gate \| up\]",
    ),
    "shapes": (
        lambda: k.add_rms_norm(X, X[:1]),
        ValueError,
        r"residual has shape \[1, 3, 8\], expected \[..., D\] = \[2, 3, 8\], as x is \[..., D\]",
    ),
    "dtypes": (
        lambda: k.add_rms_norm(X, X.half()),
        TypeError,
        "residual is torch.float16, expected torch.float32 as x",
    ),
    "in": (
        lambda: k.linear(X, torch.zeros(4, 9)),
        ValueError,
        r"weight has shape \[4, 9\], expected \[out, in\] = \[any, 8\], as",
    ),
    "bias": (
        lambda: k.linear(X, torch.zeros(4, 8), torch.zeros(8)),
        ValueError,
        r"bias has shape \[8\], expected \[out\] = \[4\]",
    ),
    "eps": (lambda: k.add_rms_norm(X, X, 0.0), ValueError, "eps is 0.0, expected a number above 0"),
    "packing": (
        lambda: k.rope_attention(torch.zeros(1, 2, 1000), None, None, 8),
        ValueError,
        r"rope_attention: qkv has 1000 columns, not a multiple of 3 \* num_heads \(8\) = 24; pass packed \[q \|",
    ),
    "heads": (lambda: k.rope_attention(torch.zeros(1, 2, 24), None, None, 0), ValueError, "num_heads is 0, expected"),
    "true heads": (
        lambda: k.rope_attention(torch.zeros(1, 2, 24), None, None, True),
        ValueError,
        "num_heads is True, expected an integer >= 1",
    ),
    "one table": (
        lambda: k.rope_attention(torch.zeros(1, 2, 24), X[0], None, 1),
        TypeError,
        "one of cos and sin is None",
    ),
    "short table": (
        lambda: k.rope_attention(torch.zeros(1, 4, 24), torch.zeros(3, 8), torch.zeros(3, 8), 1),
        ValueError,
        r"cos has shape \[3, 8\], expected \[>= S, head_dim\] = \[>= 4, 8\]; make it with hrm_kernels.nn.rope_tables",
    ),
    "block weights": (
        lambda: k.transformer_block(X, W.qkv, None, None, 2),
        TypeError,
        "weights.* expected BlockWeights",
    ),
    "block shapes": (
        lambda: k.transformer_block(X, W._replace(o=torch.zeros(8, 9)), None, None, 2),
        ValueError,
        r"weights\[0\].o has shape \[8, 9\], expected \[D, H d\] = \[8, 8\]",
    ),
    "no layers": (lambda: k.reasoning_module(X, X, [], None, None, 2), TypeError, "layers is list of no block"),
    "cycles": (
        lambda: k.recurrent_cycles(X, X, X, [W], [W], None, None, 2, 0, 1),
        ValueError,
        "H_cycles is 0, expected an integer >= 1",
    ),
    "labels": (
        lambda: k.stablemax_cross_entropy(X, X[..., 0]),
        TypeError,
        "labels is torch.float32, expected an int32 or",
    ),
    "label shape": (
        lambda: k.stablemax_cross_entropy(X, torch.zeros(2, 2, dtype=torch.int64)),
        ValueError,
        r"labels has shape \[2, 2\], expected the shape of logits without V = \[2, 3\]",
    ),
}


M = k.token_mixing
UP, DOWN = torch.zeros(10, 3), torch.zeros(3, 5)
MISFITS |= {
    "mixing rank": (lambda: M(X[0], UP, DOWN), ValueError, r"token_mixing: x has shape \[3, 8\], expected \[B, S, D\]"),
    "mixing dtype": (
        lambda: M(X, UP.half(), DOWN),
        TypeError,
        "token_mixing: gate_up is torch.float16, expected torch",
    ),
    "mixing gate_up": (
        lambda: M(X, UP.t(), DOWN),
        ValueError,
        r"gate_up has shape \[3, 10\], expected \[2 I, S\] = \[10, 3\], as x is \[B, S, D\], down is \[S, I\]",
    ),
    "mixing down": (
        lambda: M(X, UP, DOWN[:2]),
        ValueError,
        r"down has shape \[2, 5\], expected \[S, I\] = \[3, any\], as x is \[B, S, D\]",
    ),
    "mixing eps": (lambda: M(X, UP, DOWN, 0), ValueError, "token_mixing: eps is 0"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_errors_say_what_came_and_what_was_expected(misfit):
    call, error, message = MISFITS[misfit]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("backend", [None, "reference"])
def test_numbers_may_be_numpys(backend):
    two, x, w = np.int64(2), torch.randn(2, 3, 8), k.BlockWeights(*map(torch.randn_like, W))
    with k.use_backend(backend):
        for call in (
            lambda two: k.rope_attention(torch.cat([x] * 3, -1), None, None, two),
            lambda two: k.transformer_block(x, w, None, None, two),
            lambda two: k.reasoning_module(x, x, [w], None, None, two),
            lambda two: torch.stack(k.recurrent_cycles(x, x, x, [w], [w], None, None, two, two, two)),
        ):
            assert torch.equal(call(two), call(2))


def test_arguments_that_were_accepted_do_not_let_others_pass():
    """Checks remember what they have accepted; the messages for anything else stay."""
    x, residual = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    for _ in range(2):
        k.add_rms_norm(x, residual)
        with pytest.raises(TypeError, match="residual is ndarray, expected a torch.Tensor"):
            k.add_rms_norm(x, residual.numpy())
        with pytest.raises(TypeError, match="residual is torch.float64, expected torch.float32 as x"):
            k.add_rms_norm(x, residual.double())
        with pytest.raises(ValueError, match="residual is on meta, expected cpu as x"):
            k.add_rms_norm(x, residual.to("meta"))
        with pytest.raises(ValueError, match=r"residual has shape \[2, 3, 7\], expected"):
            k.add_rms_norm(x, residual[..., :7])


def test_numbers_of_heads_that_equal_an_accepted_one():
    x, layers = torch.randn(1, 3, 8), [k.BlockWeights(*(torch.randn(s) for s in ((24, 8), (8, 8), (12, 8), (8, 6))))]
    for _ in range(2):
        k.reasoning_module(x, x, layers, None, None, 1)
        for equal in (True, 1.0):
            with pytest.raises(ValueError, match="num_heads is .*, expected an integer >= 1"):
                k.reasoning_module(x, x, layers, None, None, equal)
        with pytest.raises(TypeError, match="of no block, expected a list of BlockWeights"):
            k.reasoning_module(x, x, [], None, None, 1)
        with pytest.raises(TypeError, match=r"layers\[0\] is int, expected BlockWeights"):
            k.reasoning_module(x, x, [1], None, None, 1)
        with pytest.raises(TypeError, match="one of cos and sin is None"):
            k.reasoning_module(x, x, layers, torch.ones(3, 8), None, 1)


def test_what_checks_remember_is_bounded(monkeypatch):
    monkeypatch.setattr(Accepted, "MOST", 3)
    for columns in range(1, 20):
        k.swiglu(torch.randn(1, 2 * columns))
    assert len(k.specs()["swiglu"]._accepted._keys) <= 3

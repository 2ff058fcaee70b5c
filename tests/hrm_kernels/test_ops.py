"""Every op against the mathematics written out in float64, and its contract: gradients, registration, errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrm_kernels as k
from hrm_kernels.nn import rope_tables

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-5


def random(*shape, dtype=torch.float64, seed=0, scale=1.0):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def random_block(dim, heads_width, inner, dtype=torch.float64, seed=0):
    shapes = ((3 * heads_width, dim), (dim, heads_width), (2 * inner, dim), (dim, inner))
    return k.BlockWeights(
        *(random(*shape, dtype=dtype, seed=seed + i, scale=shape[1] ** -0.5) for i, shape in enumerate(shapes))
    )


# The mathematics, in float64 and element by element where the op is not elementwise


def exact_norm(u):
    return u / torch.sqrt((u * u).mean(-1, keepdim=True) + EPS)


def exact_swiglu(gate_up):
    inner = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :inner], gate_up[..., inner:]
    return gate / (1 + torch.exp(-gate)) * up


def exact_attention(qkv, cos, sin, num_heads):
    batch, positions, columns = qkv.shape
    width = columns // 3
    dim = width // num_heads
    out = torch.empty(batch, positions, width, dtype=torch.float64)
    for head in range(num_heads):
        q, key, v = (qkv[..., part * width + head * dim : part * width + (head + 1) * dim] for part in range(3))
        if cos is not None:
            q, key = turn(q, cos, sin), turn(key, cos, sin)
        scores = torch.einsum("bsd,btd->bst", q, key) / math.sqrt(dim)
        out[..., head * dim : (head + 1) * dim] = torch.einsum("bst,btd->bsd", torch.softmax(scores, -1), v)
    return out


def turn(x, cos, sin):
    """Each pair (i, i + d/2) as a complex number, times e^(i angle)."""
    half = x.shape[-1] // 2
    angle = torch.complex(cos[: x.shape[1], :half].double(), sin[: x.shape[1], :half].double())
    turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * angle
    return torch.cat((turned.real, turned.imag), -1)


def exact_block(x, weights, cos, sin, num_heads):
    x = exact_norm(x + exact_attention(x @ weights.qkv.T, cos, sin, num_heads) @ weights.o.T)
    return exact_norm(x + exact_swiglu(x @ weights.gate_up.T) @ weights.down.T)


def exact_module(z, injection, layers, cos, sin, num_heads):
    z = z + injection
    for weights in layers:
        z = exact_block(z, weights, cos, sin, num_heads)
    return z


def exact_stablemax(logits, labels, ignore_index=-100):
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp(max=0)))
    losses = torch.zeros(labels.shape, dtype=torch.float64)
    for index in torch.ones_like(labels).nonzero():
        place = tuple(index.tolist())
        if labels[place] != ignore_index:
            losses[place] = -math.log(s[place][labels[place]] / s[place].sum())
    return losses


def assert_close(got, want, roundings=4.0):
    """Within some roundings of the dtype, relative to the scale of the whole result."""
    assert got.shape == want.shape
    scale = want.abs().max().clamp(min=1e-3)
    error = (got.double() - want).abs().max()
    bound = roundings * max(torch.finfo(got.dtype).eps, 1e-15) * scale
    assert error <= bound, f"error {error:.2e}, allowed {bound:.2e}"


SEQUENCES = [1, 17, 81, 82, 97, 128, 129]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17, 64), (2, 82, 512), (5, 768), (0, 4, 64)])
def test_add_rms_norm(shape, dtype):
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    if x.numel() == 0:
        assert k.add_rms_norm(x, residual).shape == shape
        return
    assert_close(k.add_rms_norm(x, residual), exact_norm((x + residual).double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), (3, 17, 128), (2, 82, 3072)])
def test_swiglu(shape, dtype):
    gate_up = random(*shape, dtype=dtype, scale=3)
    assert_close(k.swiglu(gate_up), exact_swiglu(gate_up.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 512, 2), (81, 64, 11), (1, 97, 300), (0, 8, 4)])
def test_linear(shape, bias, dtype):
    rows, inputs, outputs = shape
    x, weight = random(rows, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=1, scale=inputs**-0.5)
    own = random(outputs, dtype=dtype, seed=2) if bias else None
    want = x.double() @ weight.double().T + (own.double() if bias else 0)
    got = k.linear(x, weight, own)
    assert_close(got, want) if rows else None
    assert got.shape == want.shape and torch.equal(k.linear(x[None], weight, own), got[None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("positions", SEQUENCES)
def test_rope_attention(positions, rope, dtype):
    heads, dim = (2, 32) if positions % 2 else (1, 64)
    qkv = random(2, positions, 3 * heads * dim, dtype=dtype)
    cos, sin = rope_tables(positions + 3, dim) if rope else (None, None)
    assert_close(k.rope_attention(qkv, cos, sin, heads), exact_attention(qkv.double(), cos, sin, heads), 8)


@pytest.mark.parametrize("positions", [900, 901, 916])
def test_rope_attention_of_long_sequences(positions):
    qkv, (cos, sin) = random(1, positions, 3 * 128, dtype=torch.float32), rope_tables(positions, 128)
    assert_close(k.rope_attention(qkv, cos, sin, 1), exact_attention(qkv.double(), cos, sin, 1), 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "heads"), [(64, 2), (128, 2), (384, 3)])
def test_transformer_block_and_module(dim, heads, dtype):
    x, injection = random(2, 17, dim, dtype=dtype), random(2, 17, dim, dtype=dtype, seed=9)
    layers = [random_block(dim, dim, 256, dtype, seed) for seed in (10, 20)]
    cos, sin = rope_tables(17, dim // heads)
    wide = [k.BlockWeights(*(w.double() for w in weights)) for weights in layers]
    assert_close(
        k.transformer_block(x, layers[0], cos, sin, heads), exact_block(x.double(), wide[0], cos, sin, heads), 16
    )
    assert_close(
        k.reasoning_module(x, injection, layers, cos, sin, heads),
        exact_module(x.double(), injection.double(), wide, cos, sin, heads),
        24,
    )


@pytest.mark.parametrize(("H_cycles", "L_cycles"), [(1, 1), (1, 3), (2, 2), (3, 1)])
def test_recurrent_cycles_leaves_the_last_update_of_each(H_cycles, L_cycles):
    z_H, z_L, x = (random(2, 5, 64, seed=seed) for seed in range(3))
    H_layers, L_layers = [random_block(64, 64, 64, seed=10)], [random_block(64, 64, 64, seed=s) for s in (20, 30)]
    cos, sin = rope_tables(5, 32)
    before = z_H.clone(), z_L.clone()
    got_H, got_L = k.recurrent_cycles(z_H, z_L, x, H_layers, L_layers, cos, sin, 2, H_cycles, L_cycles)
    assert torch.equal(z_H, before[0]) and torch.equal(z_L, before[1])
    for updates in [L_cycles] * (H_cycles - 1) + [L_cycles - 1]:
        for _ in range(updates):
            z_L = exact_module(z_L, z_H + x, L_layers, cos, sin, 2)
        if updates == L_cycles:
            z_H = exact_module(z_H, z_L, H_layers, cos, sin, 2)
    assert_close(got_H, z_H, 1e4)
    assert_close(got_L, z_L, 1e4)


def test_recurrent_cycles_has_no_gradient():
    z, weights = random(1, 3, 64), random_block(64, 64, 64)
    weights = k.BlockWeights(*(w.requires_grad_() for w in weights))
    z_H, z_L = k.recurrent_cycles(z, z, z.clone().requires_grad_(), [weights], [weights], None, None, 2, 2, 2)
    assert not z_H.requires_grad and not z_L.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e5])
def test_stablemax_cross_entropy(scale, dtype):
    if scale == 1e5 and dtype is torch.float16:
        pytest.skip("float16 ends at 65504")
    logits = random(4, 7, 12, scale=scale / 5).clamp(-scale, scale).to(dtype)
    labels = torch.randint(0, 12, (4, 7), generator=torch.Generator().manual_seed(0))
    labels[0], labels[2, 3] = -100, -100
    losses = k.stablemax_cross_entropy(logits, labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), exact_stablemax(logits.double(), labels), rtol=1e-6, atol=1e-7)


def test_stablemax_gradient_is_zero_for_ignored_tokens():
    logits, labels = random(2, 5, 6, dtype=torch.float32).requires_grad_(), torch.tensor([[0, 1, 2, 3, 4], [-1] * 5])
    k.stablemax_cross_entropy(logits, labels, ignore_index=-1).sum().backward()
    assert logits.grad[0].abs().min() > 0 and logits.grad[1].abs().max() == 0


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    positions=st.integers(1, 40),
    heads=st.integers(1, 4),
    half=st.integers(1, 24),
    seed=st.integers(0, 1000),
)
def test_random_attention_shapes(batch, positions, heads, half, seed):
    qkv, (cos, sin) = (
        random(batch, positions, 6 * heads * half, dtype=torch.float32, seed=seed),
        rope_tables(50, 2 * half),
    )
    got = k.rope_attention(qkv, cos, sin, heads)
    if batch:
        assert_close(got, exact_attention(qkv.double(), cos, sin, heads), 16)
    else:
        assert got.shape == (0, positions, 2 * heads * half)


def small_arguments(dtype=torch.float64):
    """Small arguments of each op, as its public function takes them."""
    x, y, z = (random(2, 3, 8, dtype=dtype, seed=seed).requires_grad_() for seed in range(3))
    weights = k.BlockWeights(*(w.requires_grad_() for w in random_block(8, 8, 6, dtype, seed=5)))
    cos, sin = rope_tables(3, 4)
    labels = torch.tensor([[1, -100, 7], [0, 3, 2]])
    return {
        "add_rms_norm": (x, y, EPS),
        "swiglu": (x,),
        "linear": (x, weights.o, random(8, dtype=dtype, seed=6).requires_grad_()),
        "rope_attention": (random(2, 3, 24, dtype=dtype).requires_grad_(), cos, sin, 2),
        "transformer_block": (x, weights, cos, sin, 2, EPS),
        "reasoning_module": (x, y, [weights, weights], cos, sin, 2, EPS),
        "recurrent_cycles": (x, y, z, [weights], [weights, weights], cos, sin, 2, 2, 2, EPS),
        "stablemax_cross_entropy": (x, labels, -100),
    }


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    return [t for part in value for t in tensors_of(part)] if isinstance(value, list | tuple) else []


def registered_form(arguments):
    """Layers as one flat list of tensors, the form of the registered op."""
    return tuple(
        [w for block in value for w in (block if isinstance(block, tuple) else (block,))]
        if isinstance(value, list)
        else list(value)
        if isinstance(value, tuple)
        else value
        for value in arguments
    )


@pytest.mark.parametrize("op", [name for name in small_arguments() if name != "recurrent_cycles"])
def test_gradients(op):
    """Every argument that can need a gradient gets it, and inputs are not written to."""
    arguments = small_arguments()[op]
    wanted = list({id(t): t for t in tensors_of(arguments)}.values())
    copies = [t.detach().clone() for t in wanted]
    assert torch.autograd.gradcheck(lambda *_: getattr(k, op)(*arguments), wanted, atol=1e-7)
    assert all(torch.equal(t, copy) for t, copy in zip(wanted, copies, strict=True))


@pytest.mark.parametrize("op", small_arguments())
def test_registration(op):
    arguments = registered_form(small_arguments(torch.float32)[op])
    torch.library.opcheck(getattr(torch.ops.hrm_kernels, op).default, arguments)
    got, want = getattr(torch.ops.hrm_kernels, op)(*arguments), getattr(k, op)(*small_arguments(torch.float32)[op])
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("op", small_arguments())
def test_compiles_without_graph_breaks_or_recompiles(op):
    torch._dynamo.reset()
    function = getattr(k, op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    arguments = small_arguments(torch.float32)[op]
    with torch.compiler.set_stance("default"):
        first = compiled(*arguments)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = compiled(*small_arguments(torch.float32)[op])
    torch.testing.assert_close(first, function(*arguments), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@pytest.mark.parametrize("op", ["add_rms_norm", "linear", "reasoning_module"])
def test_the_same_tensor_twice_compiles(op):
    """torch.compile refuses it as two arguments of one autograd.Function."""
    torch._dynamo.reset()
    x, weights = random(3, 8, 8, dtype=torch.float32), random_block(8, 8, 6, torch.float32, seed=5)
    function = {
        "add_rms_norm": lambda x: k.add_rms_norm(x, x),
        "linear": lambda x: k.linear(x[0], x[0]),
        "reasoning_module": lambda x: k.reasoning_module(x, x, [weights, weights], None, None, 2),
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
    arguments = small_arguments(torch.float32)["reasoning_module"]
    compiled = torch.compile(k.reasoning_module, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), k.reasoning_module(*arguments), rtol=1e-5, atol=1e-5)


def test_non_contiguous_inputs():
    x = random(3, 2, 8, dtype=torch.float32).transpose(0, 1)
    assert torch.equal(k.add_rms_norm(x, x), k.add_rms_norm(x.contiguous(), x.contiguous()))
    qkv = random(3, 2, 24, dtype=torch.float32).transpose(0, 1)
    assert torch.equal(k.rope_attention(qkv, None, None, 2), k.rope_attention(qkv.contiguous(), None, None, 2))
    wide = random(2, 3, 16, dtype=torch.float32)[..., ::2]
    assert torch.equal(k.swiglu(wide), k.swiglu(wide.contiguous()))


X = torch.zeros(2, 3, 8)
W = k.BlockWeights(torch.zeros(24, 8), torch.zeros(8, 8), torch.zeros(12, 8), torch.zeros(8, 6))
MISFITS = {
    "not a tensor": (lambda: k.swiglu([1.0]), TypeError, "swiglu: gate_up is list, expected a torch.Tensor"),
    "integers": (
        lambda: k.swiglu(torch.zeros(4, dtype=torch.int32)),
        TypeError,
        "gate_up is torch.int32, expected float32",
    ),
    "odd": (lambda: k.swiglu(torch.zeros(2, 5)), ValueError, r"shape \[2, 5\], expected \[..., 2 I\]"),
    "shapes": (
        lambda: k.add_rms_norm(X, X[:1]),
        ValueError,
        r"residual has shape \[1, 3, 8\], expected the shape of x",
    ),
    "dtypes": (
        lambda: k.add_rms_norm(X, X.half()),
        TypeError,
        "residual is torch.float16, expected torch.float32 as x",
    ),
    "in": (lambda: k.linear(X, torch.zeros(4, 9)), ValueError, r"weight has shape \[4, 9\], expected \[out, in\] with"),
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

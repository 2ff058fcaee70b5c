"""Ops and layers under torch.autocast: dtypes as PyTorch's own operations of that kind have them, values by float64."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import nn as layers
from hrm_kernels.nn import rope_tables
from hrm_kernels.optim import SparseSignSGD

COS, SIN = rope_tables(5, 32)
LABELS = torch.tensor([[1, -100, 7, 3, 2], [0, 3, 2, 5, 6]])
BACKENDS = [("cpu", torch.bfloat16), ("triton", torch.float16), ("reference", torch.bfloat16)]
"""With a dtype of autocast that the backend runs here: Triton's interpreter has no bfloat16."""


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(seed):
    shapes = ((192, 64), (64, 64), (96, 64), (64, 48))
    return [random(*shape, seed=seed + i, scale=shape[1] ** -0.5) for i, shape in enumerate(shapes)]


def as_blocks(flat):
    return [k.BlockWeights(*flat[at : at + 4]) for at in range(0, len(flat), 4)]


X, Y = random(2, 5, 64, seed=1), random(2, 5, 64, seed=2)


def run(op, tensors, dtype, backend, autocast=None):
    leaves = [one.to(dtype, copy=True).requires_grad_() for one in tensors]
    with k.use_backend(backend):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            out = op(*leaves)
        out.double().sin().sum().backward()
    assert all(one.grad.dtype == dtype for one in leaves)
    return [out.detach(), *(one.grad for one in leaves)]


def errors(got, want):
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(got, want, strict=True)]


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_pointwise_ops_and_the_loss_keep_the_dtype_they_are_given(backend, dtype):
    for function, tensors in ((k.swiglu, [X]), (lambda x: k.stablemax_cross_entropy(x, LABELS), [X])):
        got = run(function, tensors, torch.float32, backend, dtype)
        want = run(function, tensors, torch.float32, backend)
        assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_add_rms_norm_takes_the_wider_dtype(backend, dtype):
    narrow, wide = X.to(dtype), Y.float()
    with k.use_backend(backend):
        want = k.add_rms_norm(narrow.float(), wide)
        with torch.autocast("cpu", dtype):
            assert torch.equal(k.add_rms_norm(narrow, wide), want)
            assert torch.equal(k.add_rms_norm(wide, narrow), want)
            assert k.add_rms_norm(narrow, narrow).dtype == dtype
    with pytest.raises(TypeError, match="residual is torch.float32, expected"):
        k.add_rms_norm(narrow, wide)


def test_float64_stays_float64():
    with torch.autocast("cpu", torch.bfloat16):
        assert k.rope_attention(random(2, 5, 192), COS, SIN, 2).dtype == torch.float64


def test_autocast_of_another_device_changes_nothing():
    x, *weights = (one.float() for one in [X, *block(6)])
    with torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else torch.autocast("xpu", torch.bfloat16):
        assert k.transformer_block(x, *as_blocks(weights), COS, SIN, 2).dtype == torch.float32


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_recurrent_cycles(backend):
    tensors = [X, Y, X - Y, *block(6)]

    def cycles(x, y, z, *flat):
        return torch.stack(k.recurrent_cycles(x, y, z, as_blocks(flat), as_blocks(flat), COS, SIN, 2, 2, 2))

    with k.use_backend(backend):
        want = cycles(*(one.bfloat16() for one in tensors))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(cycles(*(one.float() for one in tensors)), want)


def test_explain_names_the_dtype_of_autocast(capsys):
    with torch.autocast("cpu", torch.bfloat16):
        k.explain("rope_attention", X[..., :48].float(), None, None, 2)
    assert "rope_attention on cpu tensors of torch.bfloat16" in capsys.readouterr().out


LAYERS = {
    "Linear": (lambda: layers.Linear(64, 64, bias=True), 1),
    "SwiGLU": (lambda: layers.SwiGLU(64, 1.0), 1),
    "RoPEAttention": (lambda: layers.RoPEAttention(64, 2), 1),
    "PostNormBlock": (lambda: layers.PostNormBlock(64, 2, 1.0), 1),
    "ReasoningModule": (lambda: layers.ReasoningModule(2, 64, 2, 1.0), 2),
    "MixingBlock": (lambda: layers.MixingBlock(5, 64, 1.0), 1),
    "MixingModule": (lambda: layers.MixingModule(2, 5, 64, 1.0), 2),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer):
    torch.manual_seed(0)
    make, inputs = LAYERS[layer]
    module, given = make(), [X, Y][:inputs]

    def train(module, given, autocast):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = module(*given)
        out.double().sin().sum().backward()
        return [out.detach(), *(one.grad.clone() for one in module.parameters())]

    got = train(module, [one.float() for one in given], True)
    plain = train(module, [one.bfloat16() for one in given], False)
    with k.use_backend("reference"):
        exact = train(module.double(), given, False)
    for own, theirs in zip(errors(got, exact), errors(plain, exact), strict=True):
        assert own <= 2 * theirs + 2**-9


def test_an_optimiser_step_is_the_same():
    """The gradients of one identifier, 1 + 2**-10 and -1, would add up to 0 in bfloat16."""

    def step(autocast):
        table = layers.SparseEmbedding(4, 64)
        ids = torch.tensor([1, 3, 1])
        optimizer = SparseSignSGD([table])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), k.use_backend("reference"):
            rows = table(ids)
            rows.backward(torch.tensor([1 + 2**-10, 1, -1])[:, None].expand_as(rows))
            optimizer.step()
        return table.weights

    assert torch.equal(step(True), step(False))

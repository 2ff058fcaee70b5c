"""torch.set_default_dtype and set_default_device: ops follow their tensors, layers are float32, results equal."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import nn as layers
from hrm_kernels.doctor import _test_backend
from hrm_kernels.native import self_test
from hrm_kernels.nn import rope_tables
from hrm_kernels.optim import AdamATan2, SparseSignSGD

COS, SIN = rope_tables(5, 32)
X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 64, (2, 5), generator=torch.Generator().manual_seed(0))
BLOCK = k.BlockWeights(
    *(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * shape[1] ** -0.5
        for seed, shape in enumerate(((192, 64), (64, 64), (96, 64), (64, 48)))
    )
)
OPS = {
    "swiglu": k.swiglu,
    "linear": lambda x: k.linear(x, BLOCK.gate_up, BLOCK.qkv[:96, 0]),
    "add_rms_norm": lambda x: k.add_rms_norm(x, 2 * x),
    "rope_attention": lambda x: k.rope_attention(torch.cat([x, x, 2 * x], -1), COS, SIN, 2),
    "stablemax_cross_entropy": lambda x: k.stablemax_cross_entropy(x, LABELS),
    "token_mixing": lambda x: k.token_mixing(x[:1, :, :8], BLOCK.gate_up[:24, :5], BLOCK.down[:5, :12]),
    "transformer_block": lambda x: k.transformer_block(x, BLOCK, COS, SIN, 2),
    "reasoning_module": lambda x: k.reasoning_module(x, x, [BLOCK], COS, SIN, 2),
    "recurrent_cycles": lambda x: torch.stack(k.recurrent_cycles(x, x, x, [BLOCK], [BLOCK], COS, SIN, 2, 2, 2)),
}


@pytest.fixture(params=[torch.bfloat16, "meta"], ids=str)
def other_default(request):
    """Sets another dtype, or another device (as ``"cuda"`` on a machine with a GPU), on a call."""

    def change():
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(request.param)

    yield change
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def with_gradient(function):
    x = X.clone().requires_grad_()
    out = function(x)
    if out.requires_grad:
        out.sin().sum().backward()
    return [out.detach(), x.grad]


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_ops(op, backend, other_default):
    with k.use_backend(backend):
        want = with_gradient(OPS[op])
        other_default()
        got = with_gradient(OPS[op])
    for one, before in zip(got, want, strict=True):
        assert (one is None) == (before is None)
        assert one is None or (one.dtype == before.dtype and torch.equal(one, before))


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_optimisers(backend, other_default):
    def step():
        p = torch.nn.Parameter(X.clone())
        table = layers.SparseEmbedding(4, 64).to_empty(device="cpu")
        table.weights.zero_()
        adam, sparse = AdamATan2([p], weight_decay=0.1), SparseSignSGD([table])
        for _ in range(2):
            p.grad = X.flip(0)
            table(torch.tensor([0, 3], device="cpu")).backward(X[0, :2])
            adam.step()
            sparse.step()
        return p.detach(), table.weights

    with k.use_backend(backend):
        want = step()
        other_default()
        got = step()
    assert all(map(torch.equal, got, want))


def test_layers_are_float32(other_default):
    other_default()
    made = [
        layers.Linear(8, 8, bias=True),
        layers.Embedding(8, 8, 1.0, torch.bfloat16),
        layers.SparseEmbedding(8, 8),
        layers.ReasoningModule(1, 64, 2, 1.0),
        layers.MixingModule(1, 5, 64, 1.0),
    ]
    for layer in made:
        assert {one.dtype for one in layer.state_dict().values()} == {torch.float32}
        assert {one.device for one in layer.state_dict().values()} == {torch.get_default_device()}
    assert {one.dtype for one in rope_tables(4, 8)} == {torch.float32}


def test_self_tests(other_default):
    other_default()
    assert self_test("cpu") is None
    assert _test_backend("cpu") is None

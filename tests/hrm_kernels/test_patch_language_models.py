"""``patch`` of what language models and vision transformers have: RMSNorm, SwiGLU of separate projections, bfloat16.

The modules have the structure and names of published code, but are written for these tests.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hrm_kernels
from hrm_kernels import instruction_sets
from hrm_kernels.integrations import forward, probe, replacement

DIM, INNER = 32, 48


class RMSNorm(nn.Module):
    def __init__(self, dim=None, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim) + 0.5) if dim else None
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(
            hidden_states.dtype
        )
        return normed if self.weight is None else self.weight * normed


class MLP(nn.Module):
    def __init__(self, bias=False, act=F.silu, index=0):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(DIM, INNER, bias=bias) for _ in range(2))
        self.down_proj, self.act_fn, self.index = nn.Linear(INNER, DIM, bias=bias), act, index

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm around the MLP, and around a projection in place of attention."""

    def __init__(self, bias=False, weight=True):
        super().__init__()
        self.mlp, self.mix = MLP(bias), nn.Linear(DIM, DIM, bias=False)
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(DIM if weight else None) for _ in range(2))

    def forward(self, x):
        x = x + self.mix(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


REPLACED = {"mlp": "swiglu", "input_layernorm": "add_rms_norm", "post_attention_layernorm": "add_rms_norm"}


def layer(seed=0, **options):
    torch.manual_seed(seed)
    return Layer(**options)


def results(model, x):
    """Output and all gradients."""
    model.zero_grad()
    x = x.detach().requires_grad_()
    out = model(x)
    out.float().square().mean().backward()
    return [out.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())]


def assert_within_the_rule(ours, plain, exact):
    """Errors against float64 are at most twice those of plain PyTorch, and a rounding."""
    for got, theirs, want in zip(ours, plain, exact, strict=True):
        error, allowed = ((one.double() - want).abs().max() for one in (got, theirs))
        assert error <= 2 * allowed + torch.finfo(got.dtype).eps * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"bias": True, "weight": False}], ids=["llama", "without weight, biases"])
def test_outputs_and_gradients(options, dtype):
    model = layer(**options).to(dtype)
    x = torch.randn(2, 5, DIM).to(dtype)
    exact = results(copy.deepcopy(model).double(), x.double())
    plain, state = results(model, x), copy.deepcopy(model.state_dict())
    report = hrm_kernels.patch(model, backend="cpu" if hrm_kernels.available_backends()["cpu"] is None else "reference")
    assert {name: report.replaced[name] for name in REPLACED} == REPLACED
    assert_within_the_rule(results(model, x), plain, exact)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert hrm_kernels.unpatch(model) == len(report.replaced)
    for got, want in zip(results(model, x), plain, strict=True):
        assert torch.equal(got, want)


def test_small_calls_keep_their_forward(monkeypatch):
    """Where an op saves less than its call costs, nothing changes; with the limit at 0 the op runs."""
    model, x = layer(), torch.randn(2, 5, DIM)
    want = model(x)
    hrm_kernels.patch(model)
    assert torch.equal(model(x), want)
    calls = []
    monkeypatch.setattr(forward, "_SMALL", {"norm": 0, "swiglu": 0})
    run = forward.add_rms_norm
    monkeypatch.setattr(forward, "add_rms_norm", lambda *arguments: calls.append(1) or run(*arguments))
    torch.testing.assert_close(model(x), want)
    assert calls


def test_calls_are_compared_by_powers_of_two_of_rows(monkeypatch):
    mlp, compared = MLP(), []
    hrm_kernels.patch(mlp, backend="reference")
    compare = replacement.compare
    monkeypatch.setattr(replacement, "compare", lambda *a, **k: compared.append(1) or compare(*a, **k))
    with torch.no_grad():
        for rows in (5, 7, 6, 4):
            mlp(torch.randn(1, rows, DIM))
        first = len(compared)
        mlp(torch.randn(1, 9, DIM))
    assert first and len(compared) == 2 * first


def test_under_compile():
    model, x = layer(bias=True), torch.randn(2, 5, DIM)
    want = results(model, x)
    hrm_kernels.patch(model, backend="reference")
    torch._dynamo.reset()
    for got, one in zip(results(torch.compile(model, fullgraph=True, backend="aot_eager"), x), want, strict=True):
        torch.testing.assert_close(got, one)


def test_second_order_gradients():
    mlp = MLP(bias=True).double()
    hrm_kernels.patch(mlp, backend="reference")
    x = torch.randn(1, 1, DIM, dtype=torch.float64, requires_grad=True)
    mlp(x)  # the comparison of a first call
    assert torch.autograd.gradgradcheck(mlp, x)


def test_modules_that_compute_something_else_stay():
    class OneMore(RMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) * (1 + self.weight)

    report = hrm_kernels.patch(nn.Sequential(MLP(act=F.gelu), OneMore(DIM), nn.RMSNorm(DIM, eps=1e-6)))
    assert not report.replaced and set(report.kept) == {"0", "1"}
    assert all(reason.startswith("it computes something else") for reason in report.kept.values())


def test_layers_that_are_alike_are_tried_once(monkeypatch):
    model, tried = nn.Sequential(*(MLP() for _ in range(3)), MLP(act=F.gelu), MLP(index=1)), []
    difference = probe._difference
    monkeypatch.setattr(probe, "_difference", lambda *a: tried.append(a[0]) or difference(*a))
    report = hrm_kernels.patch(model)
    assert list(report.replaced) == ["0", "1", "2", "4"] and list(report.kept) == ["3"]
    assert tried == [model[0], model[3], model[4]]  # another activation, another attribute


@pytest.mark.skipif(not instruction_sets.pytorch_lacks_bfloat16(), reason="PyTorch multiplies bfloat16 here")
@pytest.mark.skipif(hrm_kernels.available_backends()["cpu"] is not None, reason="there is no CPU library")
def test_linear_layers_in_bfloat16():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, INNER), nn.Linear(INNER, 7, bias=False))
    assert not hrm_kernels.patch(model).replaced
    x = torch.randn(4, 5, DIM)
    model, x = model.bfloat16(), x.bfloat16()
    exact, plain = results(copy.deepcopy(model).double(), x.double()), results(model, x)
    assert hrm_kernels.patch(model).replaced == {"0": "linear", "1": "linear"}
    assert hrm_kernels.patch(model).kept == dict.fromkeys(
        "01", "it is already patched; call unpatch first to patch it again"
    )
    assert_within_the_rule(results(model, x), plain, exact)
    wide = copy.deepcopy(model).float()  # other dtypes run as before
    assert torch.equal(wide[0](x.float()), F.linear(x.float(), wide[0].weight, wide[0].bias))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x), model(x.float()))
    assert hrm_kernels.unpatch(model) == 2
    for got, want in zip(results(model, x), plain, strict=True):
        assert torch.equal(got, want)

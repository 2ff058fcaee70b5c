"""``patch`` on models with the layer layout and the parameter names of the EqR and URM code bases."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hrm_kernels
from hrm_kernels.nn import rope_tables

TOKENS = torch.randint(0, 9, (2, 6), generator=torch.Generator().manual_seed(0))
BLOCK_OPS = "rope_attention, conv_swiglu, add_rms_norm"


def norm(x):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


class Cast(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = None

    def forward(self, input):
        return F.linear(input, self.weight.to(input.dtype))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 2, 16
        self.qkv_proj, self.o_proj = Cast(32, 96), Cast(32, 32)

    def turn(self, x, cos_sin):
        if cos_sin is None:
            return x
        cos, sin = (table[:, None] for table in cos_sin)
        first, second = x.chunk(2, -1)
        return (x * cos + torch.cat((-second, first), -1) * sin).to(x.dtype)

    def forward(self, cos_sin, hidden_states):
        q, k, v = self.qkv_proj(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        heads = [one.transpose(1, 2) for one in (self.turn(q, cos_sin), self.turn(k, cos_sin), v)]
        return self.o_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.gate_up_proj, self.down_proj = Cast(width, 48), Cast(24, width)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class ConvMlp(Mlp):
    def __init__(self, kernel=2, last=F.silu):
        super().__init__()
        self.last = last
        self.dwconv = nn.Conv1d(24, 24, kernel, padding=kernel // 2, groups=24)

    def forward(self, x, timer=None, prefix=""):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        y = (F.silu(gate) * up).transpose(1, 2).to(self.dwconv.weight.dtype)
        y = self.dwconv(y)[..., : x.shape[1]].transpose(1, 2).to(x.dtype)
        return self.down_proj(self.last(y))


class PublishedConvMlp(ConvMlp):
    """The convolution in bfloat16, as the published code has it: it rounds states of any dtype, for the rest too."""

    def __init__(self):
        super().__init__()
        self.dwconv.to(torch.bfloat16)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        y = self.dwconv((F.silu(gate) * up).transpose(1, 2).to(self.dwconv.weight.dtype))
        return self.down_proj(F.silu(y[..., : x.shape[1]]).transpose(1, 2))


class UrmBlock(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.self_attn, self.mlp, self.norm_eps = Attention(), mlp, 1e-5

    def forward(self, cos_sin, hidden_states):
        hidden_states = norm(hidden_states + self.self_attn(cos_sin=cos_sin, hidden_states=hidden_states))
        return norm(hidden_states + self.mlp(hidden_states))


class Urm(nn.Module):
    def __init__(self, make_mlp=ConvMlp, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype
        self.embedding = nn.Embedding(9, 32)
        self.layers = nn.ModuleList(UrmBlock(make_mlp()) for _ in range(2))
        self.lm_head = Cast(32, 9)

    def forward(self, tokens):
        x = self.embedding(tokens).to(self.dtype)
        hidden, tables = torch.ones_like(x), rope_tables(tokens.shape[1], 16)
        for _ in range(3):
            hidden = hidden + x
            for layer in self.layers:
                hidden = layer(cos_sin=tables, hidden_states=hidden)
        return self.lm_head(hidden)


class EqrBlock(nn.Module):
    def __init__(self, mixing):
        super().__init__()
        self.mixing, self.norm_eps = mixing, 1e-5
        if mixing:
            self.mlp_t = Mlp(6)
        else:
            self.self_attn = Attention()
        self.mlp = Mlp()

    def forward(self, cos_sin, hidden_states):
        if self.mixing:
            across = hidden_states.transpose(1, 2)
            hidden_states = norm(across + self.mlp_t(across)).transpose(1, 2)
        else:
            hidden_states = norm(hidden_states + self.self_attn(cos_sin=cos_sin, hidden_states=hidden_states))
        return norm(hidden_states + self.mlp(hidden_states))


class NoisyLevel(nn.Module):
    def __init__(self, mixing):
        super().__init__()
        self.layers = nn.ModuleList(EqrBlock(mixing) for _ in range(2))
        self.lambda_, self.noise_scale = 0.95, 0.01

    def forward(self, hidden_states, input_injection, **kwargs):
        updated = hidden_states + input_injection
        for layer in self.layers:
            updated = layer(hidden_states=updated, **kwargs)
        noise = torch.randn_like(hidden_states) * self.noise_scale
        return (1 - self.lambda_) * hidden_states + self.lambda_ * updated + noise


class Eqr(nn.Module):
    def __init__(self, mixing):
        super().__init__()
        self.embedding, self.L_level, self.lm_head = nn.Embedding(9, 32), NoisyLevel(mixing), Cast(32, 9)
        self.mixing = mixing

    def forward(self, tokens):
        x = self.embedding(tokens)
        z_H, z_L = torch.randn_like(x), torch.randn_like(x)
        tables = None if self.mixing else rope_tables(tokens.shape[1], 16)
        for _ in range(2):
            z_L = self.L_level(z_L, z_H + x, cos_sin=tables)
        return self.lm_head(self.L_level(z_H, z_L, cos_sin=tables))


def results(model, tokens=TOKENS):
    torch.manual_seed(1)
    model.zero_grad()
    logits = model(tokens)
    logits.square().mean().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1e-6)


def test_a_urm():
    torch.manual_seed(0)
    model = Urm()
    want, names = results(model), list(model.state_dict())
    report = hrm_kernels.patch(model)
    assert report.kept == {}
    assert report.replaced.pop("lm_head").startswith("a cast of its weight")
    assert report.replaced == dict.fromkeys(("layers.0", "layers.1"), BLOCK_OPS)
    assert_same(results(model), want)
    assert list(model.state_dict()) == names and "layers.0.mlp.dwconv.weight" in names
    assert hrm_kernels.unpatch(model) == 3
    assert all(map(torch.equal, results(model), want))


def error(values, truth):
    return torch.stack([(a - b).norm() / b.norm() for a, b in zip(values, truth, strict=True)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_urm_with_a_convolution_in_bfloat16(dtype):
    torch.manual_seed(0)
    model = Urm(PublishedConvMlp, dtype)
    wide = copy.deepcopy(model).double()
    wide.dtype = torch.float64
    tokens = torch.randint(0, 9, (16, 8))  # enough that the errors are no chance
    truth, plain = results(wide, tokens), results(model, tokens)
    assert hrm_kernels.patch(model).replaced["layers.0"] == BLOCK_OPS
    ours = results(model, tokens)
    assert "mlp.dwconv.weight" in model.layers[0].state_dict() and model.layers[0].mlp.dwconv.bias.grad.any()
    if dtype is torch.float32:  # the ops do not round states to bfloat16, so the blocks run as they are
        assert all(map(torch.equal, ours, plain))
    else:
        assert not torch.equal(ours[0], plain[0])
        assert (error(ours, truth) <= 2 * error(plain, truth)).all()
    assert hrm_kernels.unpatch(model) == 3


@pytest.mark.parametrize("mlp", [lambda: ConvMlp(kernel=3), lambda: ConvMlp(last=F.gelu)], ids=["kernel", "activation"])
def test_another_convolution_is_not_replaced(mlp):
    torch.manual_seed(0)
    model = Urm(mlp)
    want, report = results(model), hrm_kernels.patch(model)
    assert {"layers.0", "layers.0.mlp"} <= set(report.kept)
    assert "it computes something else" in report.kept["layers.0.mlp"]
    assert "layers.0.self_attn" in report.replaced
    assert_same(results(model), want)


@pytest.mark.parametrize("mixing", [False, True])
def test_an_eqr(mixing):
    """Its blocks; the level draws noise, which the ops would draw otherwise."""
    torch.manual_seed(0)
    model = Eqr(mixing)
    want, report = results(model), hrm_kernels.patch(model)
    assert {f"L_level.layers.{i}": "transformer_block" for i in range(2)}.items() <= report.replaced.items()
    assert "draws random numbers" in report.kept["L_level"] and len(report.kept) == 1
    assert_same(results(model), want)

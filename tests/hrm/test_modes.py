"""Models under another default dtype or device, torch.autocast, forward-mode differentiation and torch.func."""

import pytest
import torch
import torch.autograd.forward_ad as forward_mode

import hrm
from hrm.families import build
from hrm_kernels import use_backend

SMALL = {
    "seq_len": 16, "vocab_size": 6, "hidden_size": 64, "num_heads": 2, "expansion": 1.0, "L_layers": 1,
    "halt_max_steps": 2, "forward_dtype": "float32",
}  # fmt: skip
CONFIGS = {
    "hrm": hrm.HRMConfig(H_layers=1, **SMALL),
    "hrm, learned positions": hrm.HRMConfig(H_layers=1, pos_encodings="learned", **SMALL),
    "hrm, puzzle embedding": hrm.HRMConfig(H_layers=1, puzzle_emb_ndim=64, num_puzzle_identifiers=3, **SMALL),
    "trm": hrm.TRMConfig(**SMALL),
    "trm, mlp_t": hrm.TRMConfig(mlp_t=True, pos_encodings="none", **SMALL),
}


def batch():
    generator = torch.Generator("cpu").manual_seed(0)
    tokens = torch.randint(1, 6, (4, 16), generator=generator, device="cpu")
    identifiers = torch.zeros(4, dtype=torch.long, device="cpu")
    return {"inputs": tokens, "labels": tokens.flip(1), "puzzle_identifiers": identifiers}


def made(config, train=True):
    torch.manual_seed(0)
    return build(config).train(train)


def trained(model, calls=2):
    """Losses, metrics and gradients of several calls."""
    data = batch()
    carry, results = model.initial_carry(data), []
    for _ in range(calls):
        carry, outputs = model(carry, data, min_steps=torch.zeros(4, dtype=torch.int32, device="cpu"))
        assert carry.z_H.dtype == model.config.dtype  # whatever the dtype of the updates
        loss, metrics = hrm.act_loss(carry, outputs)
        loss.backward()
        results += [loss.detach(), *metrics.values()]
    return results + [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64, "meta"])
def test_another_default_changes_nothing(default):
    shipped = hrm.load("sudoku4").state_dict()
    models = [made(CONFIGS[name]) for name in ("hrm, puzzle embedding", "trm, mlp_t")]
    want = [trained(model) for model in models]
    for model in models:
        model.zero_grad()
    try:
        torch.set_default_device(default) if default == "meta" else torch.set_default_dtype(default)
        loaded = hrm.load("sudoku4").state_dict()
        again = [trained(model) for model in models]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert loaded.keys() == shipped.keys()
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, shipped[n]) for n, tensor in loaded.items())
    for got, expected in zip(again, want, strict=True):
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_autocast(name, train):
    """Losses and gradients are as close to those in float32 as those of a model in bfloat16."""
    config = CONFIGS[name]
    model = made(config, train)
    with torch.autocast("cpu", torch.bfloat16):
        got = trained(model)
    exact = trained(made(config, train))
    plain = trained(made(config.model_copy(update={"forward_dtype": "bfloat16"}), train))
    for value, want, narrow in zip(got, exact, plain, strict=True):
        assert value.dtype == want.dtype
        scale = want.double().abs().max().clamp(min=1e-3)
        allowed = 2 * (narrow.double() - want).abs().max() / scale + 0.02
        assert (value.double() - want).abs().max() / scale < allowed


@pytest.mark.filterwarnings("ignore:.*runs on backend 'reference'")
@pytest.mark.parametrize("name", ["hrm", "trm", "trm, mlp_t"])
def test_tangents_take_the_path_of_the_gradients(name):
    """Through the last updates only: (v J) t, by the backward, equals v (J t), by forward mode."""
    config = CONFIGS[name].model_copy(update={"H_cycles": 2, "L_cycles": 2})
    inner = made(config, train=False).inner
    shape = (4, config.positions, config.hidden_size)
    z_H, z_L, x, along, v = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(5))

    leaf = x.clone().requires_grad_()
    inner.segment(z_H, z_L, leaf)[0].backward(v)
    with forward_mode.dual_level():
        tangent = forward_mode.unpack_dual(inner.segment(z_H, z_L, forward_mode.make_dual(x, along))[0]).tangent
    (direct,) = torch.func.jvp(lambda x: inner.segment(z_H, z_L, x)[0], (x,), (along,))[1:]
    torch.testing.assert_close((tangent * v).sum(), (leaf.grad * along).sum(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(direct, tangent, rtol=1e-4, atol=1e-4)


def test_functional_call_and_grad():
    model = made(CONFIGS["hrm"])
    data = batch()
    carry = model.initial_carry(data)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights):
        after, outputs = torch.func.functional_call(model, weights, (carry, data, carry.steps))
        return hrm.act_loss(after, outputs)[0]

    with use_backend("reference"):
        got = torch.func.grad(loss)(weights)
        hrm.act_loss(*model(carry, data, carry.steps))[0].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-5)

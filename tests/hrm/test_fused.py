"""The fused segment (hrm.fused) computes what the paper's loops (HRMInner.loops) compute."""

import pytest
import torch

import hrm
import hrm_kernels
from hrm import fused
from hrm.families import build
from hrm_kernels.fixed_point import warm_up

SMALL = {
    "seq_len": 6, "vocab_size": 7, "num_puzzle_identifiers": 4, "puzzle_emb_ndim": 32, "hidden_size": 32,
    "num_heads": 2, "expansion": 1.0, "L_layers": 2, "forward_dtype": "float32",
}  # fmt: skip
FAMILIES = {
    "hrm": (hrm.HRMConfig, {"H_layers": 1}),
    "hrm, learned positions": (hrm.HRMConfig, {"H_layers": 2, "pos_encodings": "learned"}),
    "trm": (hrm.TRMConfig, {"puzzle_emb_len": 2}),
    "trm, mlp_t": (hrm.TRMConfig, {"puzzle_emb_len": 2, "mlp_t": True, "pos_encodings": "none"}),
}
CYCLES = [(1, 1), (2, 2), (3, 2), (1, 3), (4, 1)]
MODES = ["one_step", "last_cycle", "full", 1, 50, *(warm_up(step, 3, last=6, first=3) for step in range(4))]


def model_of(family, **values):
    config, changes = FAMILIES[family]
    torch.manual_seed(0)
    model = build(config.parse(SMALL | changes | values)).train()
    torch.nn.init.normal_(model.puzzle_emb.weights)
    torch.nn.init.normal_(model.inner.q_head.weight)
    return model


def results(model, segment):
    """Both states, and the gradients of a loss on all their elements. The states before are detached, as in a carry."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(1, 7, (3, 6), generator=generator)
    x = model.inner.embed({"inputs": inputs, "puzzle_identifiers": torch.arange(3)})
    starts = (start.to(x.dtype).expand_as(x) for start in (model.inner.H_init, model.inner.L_init))
    model.zero_grad()
    states = segment(*starts, x)
    sum((z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum() for z in states if z.requires_grad).backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"z_H": states[0], "z_L": states[1], "puzzles": model.puzzle_emb.local_weights.grad} | named


def fused_segment(model):
    return lambda *states: fused.segment(model.inner, *states)


def assert_equal(got, want, what):
    """To the bit: both run the same operators in the same order."""
    for name, value in want.items():
        if value is None:
            assert got[name] is None, f"{what} {name}"
        else:
            assert torch.equal(got[name], value), f"{what} {name}"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cycles", CYCLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_the_loops(family, cycles, recompute):
    model = model_of(family, H_cycles=cycles[0], L_cycles=cycles[1], recompute=recompute)
    for gradient in MODES:
        model.inner.gradient = gradient
        with hrm_kernels.use_backend("reference"):
            assert_equal(results(model, fused_segment(model)), results(model, model.inner.loops), gradient)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_too(family):
    model = model_of(family, forward_dtype="bfloat16")
    for gradient in MODES:
        model.inner.gradient = gradient
        with hrm_kernels.use_backend("reference"):
            assert_equal(results(model, fused_segment(model)), results(model, model.inner.loops), gradient)


@pytest.mark.parametrize("gradient", ["one_step", 4, "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_chosen_backend_agrees(family, gradient):
    model = model_of(family, gradient=gradient, H_cycles=3, L_cycles=2)
    got = results(model, fused_segment(model))
    want = results(model, model.inner.loops)
    for name, value in want.items():
        if value is None:
            assert got[name] is None, name
            continue
        scale = value.abs().max()
        torch.testing.assert_close(got[name] / scale, value / scale, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_gradients(family):
    """The states of evaluation, and the Q values that the Q target reads."""
    model = model_of(family, no_ACT_continue=False) if family.startswith("trm") else model_of(family)
    inner, generator = model.inner, torch.Generator().manual_seed(1)
    z_H, z_L, x = (torch.randn(3, model.config.positions, 32, generator=generator) for _ in range(3))
    with hrm_kernels.use_backend("reference"), torch.no_grad():
        want = inner.loops(z_H, z_L, x)
        for got in (fused.segment(inner, z_H, z_L, x), inner.segment(z_H, z_L, x)):
            assert all(map(torch.equal, got, want))
        first = fused.first_position_after_segment(inner, z_H, z_L, x)
        torch.testing.assert_close(first, want[0][:, 0], rtol=1e-5, atol=1e-5)
        for got, q in zip(inner.next_q_values(z_H, z_L, x), inner.q_values(want[0]), strict=True):
            torch.testing.assert_close(got, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_runs_the_fused_segment(family, monkeypatch):
    inner, calls = model_of(family).inner, []
    monkeypatch.setattr(fused, "segment", lambda *states: calls.append("fused"))
    inner.segment(None, None, None)
    assert calls == ["fused"]


def test_updates_without_gradients_take_8_bits():
    """Plain PyTorch defines them; the last update of each state, and gradients, stay as they are."""
    model = model_of("hrm")
    exact = results(model, model.inner.segment)
    model.inner.eight_bit = "int8"
    with hrm_kernels.use_backend("reference"):
        rounded = results(model, model.inner.segment)
    for name in ("z_H", "z_L", "inner.L_level.layers.0.mlp.down_proj.weight"):
        error = ((rounded[name] - exact[name]).norm() / exact[name].norm()).item()
        assert 1e-4 < error < 0.05, f"{name}: {error}"
    with hrm_kernels.use_backend("cpu"), pytest.raises(hrm_kernels.BackendUnavailable, match="gain little on a CPU"):
        results(model, model.inner.segment)

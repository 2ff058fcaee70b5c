"""Models of pre-norm blocks with residual scales."""

import pytest
import torch
import torch.nn.functional as F

import hrm
import hrm_kernels as k
from hrm_kernels.nn import ReasoningModule, residual_scales

SIZES = {
    "seq_len": 6, "vocab_size": 5, "hidden_size": 32, "num_heads": 2, "expansion": 1.0, "L_layers": 2, "norm": "pre",
    "alpha_1_init": 0.75, "alpha_2_init": 0.25, "forward_dtype": "float32",
}  # fmt: skip
CONFIGS = [hrm.HRMConfig(**SIZES, H_layers=1), hrm.TRMConfig(**SIZES), hrm.EqRConfig(**SIZES, noise_scale=0.0)]


def published_update(module, z, injection, heads):
    """One application of FPRM's network as its published code computes it: pre-norm, no convolution, no output norm."""
    alpha_1, alpha_2 = (getattr(module.scales, f"alpha_{i}_param").sigmoid().reshape(1, 1, -1) for i in (1, 2))
    depth = 2 * len(module.layers)
    beta_2 = 1 - alpha_2 * alpha_1.pow(depth)
    beta_1 = beta_2 * (1 - alpha_1) / (1 - alpha_1.pow(depth) + 1e-5)

    def norm(x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)

    x = alpha_2 * z + beta_2 * injection
    for layer in module.layers:
        qkv = layer.self_attn.qkv_proj(norm(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = alpha_1 * x + beta_1 * layer.self_attn.o_proj(attended)
        gate, up = layer.mlp.gate_up_proj(norm(x)).chunk(2, -1)
        x = alpha_1 * x + beta_1 * layer.mlp.down_proj(F.silu(gate) * up)
    return x


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_module_is_the_published_one(backend):
    torch.manual_seed(0)
    module = ReasoningModule(3, 32, 2, 1.0, scales=(0.75, 0.25))
    for parameter in module.scales.parameters():
        parameter.data += torch.randn_like(parameter)
    z, injection = torch.randn(2, 7, 32, requires_grad=True), torch.randn(2, 7, 32)
    with k.use_backend(backend):
        got = module(z, injection)
    want = published_update(module, z, injection, 2)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    inputs = [z, *module.parameters()]
    gradients = [torch.autograd.grad(one.sin().sum(), inputs) for one in (got, want)]
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_scales_keep_a_state_of_its_size():
    """What a module keeps of a state, and all that its sublayers add, make one."""
    alpha = torch.tensor([0.1, 0.5, 0.99])
    keep, add, start, inject = residual_scales(alpha, torch.full((3,), 0.25), 2)
    assert torch.equal(keep, alpha) and torch.equal(start, torch.full((3,), 0.25))
    x = start  # of a state of 1
    for _ in range(4):  # the sublayers of two blocks, each of which returns 1
        x = keep * x + add
    torch.testing.assert_close(x, torch.ones(3), rtol=1e-3, atol=0)
    torch.testing.assert_close(start * keep**4 + inject, torch.ones(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.family)
def test_segments_are_those_of_the_paper(config):
    torch.manual_seed(1)
    model = hrm.families.build(config)
    inner, x = model.inner, torch.randn(2, config.positions, 32)
    z_H, z_L = inner.initial_states(torch.zeros(2, dtype=torch.int64))
    damping = inner.damping(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32))
    with torch.no_grad():
        want = inner.loops(z_H, z_L, x, damping)
        *got, change = inner.moved_segment(z_H, z_L, x, damping)
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    squares = [sum((a - b).square().sum((1, 2)) for a, b in zip(want, pair)) for pair in ((z_H, z_L),)]
    torch.testing.assert_close(change[:, 0], squares[0], rtol=1e-3, atol=1e-4)
    gradients = []
    for segment in (inner.loops, inner.segment):
        loss = sum(state.sin().sum() for state in segment(z_H, z_L, x, damping))
        gradients.append(torch.autograd.grad(loss, list(inner.L_level.parameters())))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_checkpoints_and_refusals(tmp_path):
    model = hrm.TRM(CONFIGS[1])
    assert {"inner.L_level.scales.alpha_1_param", "inner.L_level.scales.alpha_2_param"} <= set(model.state_dict())
    hrm.save(model, tmp_path / "model")
    again = hrm.load(tmp_path / "model")
    assert again.config == model.config and again.config.norm == "pre"
    with pytest.raises(hrm.InputError, match="norm pre is for blocks with attention, which mlp_t replaces"):
        hrm.TRMConfig.parse({**SIZES, "mlp_t": True, "pos_encodings": "none"})
    with pytest.raises(ValueError, match="alpha_1_init is 1, expected a number between 0 and 1"):
        ReasoningModule(1, 32, 2, scales=(1, 0.5))
    blocks = ReasoningModule(1, 32, 2, 1.0, scales=(0.5, 0.5)).weights(torch.float32)
    plain = ReasoningModule(1, 32, 2, 1.0).weights(torch.float32)
    z = torch.randn(1, 3, 32)
    with pytest.raises(TypeError, match=r"layers\[1\] is BlockWeights, expected PreNormBlockWeights"):
        k.reasoning_module(z, z, [*blocks, *plain], None, None, 2)
    with pytest.raises(ValueError, match="num_heads is 0, expected 1 or more; pre-norm blocks attend"):
        k.reasoning_module(z, z, blocks, None, None, 0)
    with pytest.raises(ValueError, match=r"layers\[0\].scales has shape \[3, 32\], expected \[4, D\]: keep, add"):
        k.reasoning_module(z, z, [blocks[0]._replace(scales=blocks[0].scales[:3])], None, None, 2)

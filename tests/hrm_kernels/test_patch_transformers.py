"""``patch`` of models of Hugging Face transformers, with random weights."""

import copy

import pytest
import torch

import hrm_kernels

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8}
IMAGE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
CAUSAL = {
    "HrmText": {**SIZES, "num_layers_per_stack": 1, "H_cycles": 2, "L_cycles": 2, "L_bp_cycles": [1, 2]},
    "Llama": LLAMA,
    "Qwen3": LLAMA,
}
TOKENS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


def causal(name):
    if not hasattr(transformers, f"{name}ForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**CAUSAL[name], max_position_embeddings=64, pad_token_id=0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():  # logits far enough apart that rounding changes no token
        model.lm_head.weight.normal_()
    return model


def results(model):
    model.zero_grad()
    out = model(TOKENS, labels=TOKENS)
    out.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [out.logits.detach(), *gradients]


def generated(model):
    return model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=8, do_sample=False)


@pytest.mark.parametrize("name", CAUSAL)
def test_language_models(name):
    model = causal(name)
    exact, plain = results(copy.deepcopy(model).double()), results(model)
    tokens, state = generated(model), copy.deepcopy(model.state_dict())
    report = hrm_kernels.patch(model, backend="reference")
    ops = list(report.replaced.values())
    layers = 2 if name == "HrmText" else 1
    assert ops.count("swiglu") == layers
    assert ops.count("add_rms_norm") == {"HrmText": 6, "Llama": 3, "Qwen3": 5}[name]
    assert all("keeps its own attention" in report.kept[key] for key in report.kept if key.endswith("self_attn"))
    for got, theirs, want in zip(results(model), plain, exact, strict=True):
        error, allowed = ((one.double() - want).abs().max() for one in (got, theirs))
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * want.abs().max()
    assert torch.equal(generated(model), tokens)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert hrm_kernels.unpatch(model) == len(ops)
    assert torch.equal(results(model)[0], plain[0])


@pytest.mark.slow
def test_under_compile():
    model = causal("Llama")
    want = model(TOKENS).logits
    hrm_kernels.patch(model, backend="reference")
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(model, backend="aot_eager", fullgraph=True)(TOKENS).logits
    torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize("name", ["Aimv2VisionModel", "Dinov2Model"])
def test_vision_transformers(name):
    """RMSNorm and SwiGLU; LayerNorm and SwiGLU with biases."""
    torch.manual_seed(0)
    if name == "Dinov2Model":
        config = transformers.Dinov2Config(**IMAGE, image_size=8, patch_size=4, use_swiglu_ffn=True)
        expected = {"swiglu"}
    else:
        config = transformers.Aimv2VisionConfig(**IMAGE, image_size=8, patch_size=4)
        expected = {"swiglu", "add_rms_norm"}
    model = getattr(transformers, name)(config).eval()
    pixels = torch.randn(2, 3, 8, 8)
    want = model(pixels).last_hidden_state
    assert set(hrm_kernels.patch(model, backend="reference").replaced.values()) == expected
    torch.testing.assert_close(model(pixels).last_hidden_state, want)

"""Parity with numbers that the published implementation computed (tests/data/golden)."""

import parity
import pytest
import torch
from parity import part, read

import hrm
import hrm_kernels
from hrm.losses import softmax_cross_entropy
from hrm_kernels import stablemax_cross_entropy
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.optim import AdamATan2, SparseSignSGD


def assert_close(got, want, tolerance=1e-5):
    """Compare relative to the largest element: small elements may be sums of large ones."""
    got, want = got.detach().double(), want.double().reshape(got.shape)
    error = (got - want).abs().max() / want.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.fixture(params=["hrm_rope", "hrm_learned", "trm_attention", "trm_mlp_t"])
def golden(request):
    return parity.golden_model(request.param)


def test_state_dict_has_the_published_names_and_values(golden):
    tensors, _, model = golden
    state, want = model.state_dict(), part(tensors, "state.")
    assert state.keys() == want.keys() and isinstance(model, hrm.TRM) == (type(model.config) is hrm.TRMConfig)
    assert all(torch.equal(state[key], value.reshape(state[key].shape)) for key, value in want.items())


def test_the_reference_computes_as_the_published_code(golden):
    tensors, metadata, model = golden
    with hrm_kernels.use_backend("reference"):
        got = parity.evaluation(model, tensors)
        parity.assert_the_same(got, parity.evaluation(model, tensors, parity.as_published))
        got = parity.training(model, tensors, metadata)
        parity.assert_the_same(got, parity.training(model, tensors, metadata, parity.as_published))


@pytest.mark.parametrize("backend", ["reference", None])
def test_evaluation_is_as_accurate_as_the_published_numbers(golden, backend, jittered, monkeypatch):
    tensors, _, model = golden
    exact = parity.in_float64(model, lambda wide: parity.evaluation(wide, tensors), monkeypatch)
    with hrm_kernels.use_backend("reference"):
        plain = [parity.evaluation(one, tensors) for one in (model, *jittered(model))]
    stored = [part(tensors, f"eval.{index}.") for index in range(3)]
    with hrm_kernels.use_backend(backend):
        parity.assert_as_exact(parity.evaluation(model, tensors), stored, plain, exact)


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_is_as_accurate_as_the_published_numbers(golden, backend, recompute, jittered, monkeypatch):
    tensors, metadata, model = golden
    exact = parity.in_float64(model, lambda wide: parity.training(wide, tensors, metadata), monkeypatch)
    with hrm_kernels.use_backend("reference"):
        plain = [parity.training(one, tensors, metadata) for one in (model, *jittered(model))]
    stored = [part(tensors, f"train.{index}.") for index in range(3)]
    model.config = model.inner.config = model.config.model_copy(update={"recompute": recompute})
    with hrm_kernels.use_backend(backend):
        got = parity.training(model, tensors, metadata)
    parity.assert_as_exact(got, stored, plain, exact)
    for index, (call, want) in enumerate(zip(got, stored, strict=True)):
        kinds = ("metric.",) if index == 1 else ("metric.", "grad.")
        assert {name for name in want if name.startswith(kinds)} == {name for name in call if name.startswith(kinds)}
    assert any(call["halted"].any() for call in got[:2]), "the numbers should cover rows that are refilled"


def test_sparse_sign_sgd():
    tensors, _ = read("optim_loss")
    embedding = SparseEmbedding(20, 16).train()
    embedding.weights.copy_(tensors["signsgd.weights_before"])
    optimizer = SparseSignSGD([embedding], lr=0.02, weight_decay=0.1)
    (embedding(tensors["signsgd.ids"]) * tensors["signsgd.grad"]).sum().backward()
    optimizer.step()
    assert_close(embedding.weights, tensors["signsgd.weights_after"], 1e-7)


@pytest.mark.parametrize("capturable", [False, True])
def test_adam_atan2(capturable):
    tensors, _ = read("optim_loss")
    parameter = torch.nn.Parameter(tensors["adam_atan2.param.0"].clone())
    optimizer = AdamATan2([parameter], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, capturable=capturable)
    for step in range(1, 6):
        parameter.grad = tensors[f"adam_atan2.grad.{step}"]
        optimizer.step()
        assert_close(parameter, tensors[f"adam_atan2.param.{step}"], 1e-12)


@pytest.mark.parametrize(
    ("name", "function"), [("stablemax", stablemax_cross_entropy), ("softmax", softmax_cross_entropy)]
)
def test_token_losses(name, function):
    tensors, _ = read("optim_loss")
    logits = tensors["loss.logits"].requires_grad_()
    losses = function(logits, tensors["loss.labels"])
    torch.testing.assert_close(losses.double(), tensors[f"loss.{name}"].double(), rtol=1e-6, atol=1e-12)
    losses.sum().backward()
    torch.testing.assert_close(logits.grad, tensors[f"loss.{name}.grad"], rtol=1e-6, atol=1e-12)


def test_the_published_model_has_27_275_266_parameters():
    with torch.device("meta"):
        model = hrm.HRM(hrm.HRMConfig(seq_len=81, vocab_size=11, puzzle_emb_ndim=512))
    assert sum(parameter.numel() for parameter in model.parameters()) == 27_275_266

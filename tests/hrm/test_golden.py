"""Parity with the published implementation, on numbers computed with it (tests/data/golden)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import hrm
import hrm_kernels
from hrm.losses import softmax_cross_entropy
from hrm_kernels import stablemax_cross_entropy
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.optim import AdamATan2, SparseSignSGD

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def assert_close(got, want, tolerance=1e-5):
    """Relative to the largest element: the rule for tensors whose small elements are sums of large ones."""
    got, want = got.detach().double(), want.double().reshape(got.shape)
    error = (got - want).abs().max() / want.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture(params=["hrm_rope", "hrm_learned"])
def golden(request):
    tensors, metadata = read(request.param)
    values = json.loads(metadata["config"])
    del values["batch_size"]
    config = hrm.HRMConfig.parse(values)
    prefixed = {f"_orig_mod.model.{key}": value for key, value in part(tensors, "state.").items()}
    return tensors, metadata, hrm.from_published(prefixed, config)


def test_state_dict_has_the_published_names_and_values(golden):
    tensors, _, model = golden
    state = model.state_dict()
    assert state.keys() == part(tensors, "state.").keys()
    assert all(
        torch.equal(state[key], value.reshape(state[key].shape)) for key, value in part(tensors, "state.").items()
    )


def segments(model, batch):
    """Three evaluation segments from a fresh carry, by the golden files' names."""
    model.eval()
    carry = model.initial_carry(batch)
    for _ in range(3):
        with torch.no_grad():
            carry, outputs = model(carry, batch)
        names = {"logits": "logits", "q_halt": "q_halt_logits", "q_continue": "q_continue_logits"}
        states = {"z_H": carry.z_H, "z_L": carry.z_L, "halted": carry.halted, "steps": carry.steps}
        yield {name: outputs[output] for name, output in names.items()} | states


def test_evaluation_segments(golden):
    tensors, _, model = golden
    with hrm_kernels.use_backend("reference"):
        for index, got in enumerate(segments(model, part(tensors, "batch."))):
            want = part(tensors, f"eval.{index}.")
            for name in ("logits", "q_halt", "q_continue", "z_H", "z_L"):
                assert_close(got[name], want[name])
            assert torch.equal(got["halted"], want["halted"]) and torch.equal(got["steps"], want["steps"])


@pytest.mark.skipif(hrm_kernels.backends()["cpu"] is not None, reason="there is no CPU library")
def test_evaluation_segments_on_the_cpu_backend(golden, jittered, monkeypatch):
    """Three segments multiply an error of rounding; ours against float64 is at most twice that of plain PyTorch."""
    tensors, _, model = golden
    batch = part(tensors, "batch.")
    monkeypatch.setattr(type(model.config), "dtype", property(lambda self: torch.float64))
    with hrm_kernels.use_backend("reference"):
        wide = hrm.HRM(model.config).double()
        wide.load_state_dict(model.state_dict())
        exact = list(segments(wide, batch))
        monkeypatch.undo()
        plain = [list(segments(model, batch)), *(list(segments(one, batch)) for one in jittered(model))]
    with hrm_kernels.use_backend("cpu"):
        for index, (got, want) in enumerate(zip(segments(model, batch), exact)):
            published = part(tensors, f"eval.{index}.")
            for name in ("logits", "q_halt", "q_continue", "z_H", "z_L"):
                size = want[name].abs().max()
                others = [published[name].double().reshape(want[name].shape), *(run[index][name] for run in plain)]
                allowed = max((other.double() - want[name]).abs().max() for other in others) / size
                assert_close(got[name], want[name], 2 * allowed + 1e-6)
            assert torch.equal(got["halted"], published["halted"])


@pytest.mark.parametrize(("backend", "tolerance"), [("reference", 1e-5), (None, 2e-5)])
def test_training_calls(golden, backend, tolerance):
    """The third segment multiplies rounding: another CPU's sums are off by up to 2e-5, another backend's by more."""
    with hrm_kernels.use_backend(backend):
        check_training_calls(*golden, [tolerance, tolerance, 3 * tolerance])


def check_training_calls(tensors, metadata, model, tolerances):
    model.train()
    batch = part(tensors, "batch.")
    carry = model.initial_carry(batch)
    halted_before_last = torch.zeros(len(batch["inputs"]), dtype=torch.bool)
    for index in range(3):
        model.zero_grad()
        tolerance = tolerances[index]
        carry, outputs = model(carry, batch if index == 0 else part(tensors, f"train.{index}.batch."))
        loss, metrics = hrm.act_loss(carry, outputs, metadata["loss"])
        want = part(tensors, f"train.{index}.")
        assert_close(loss.reshape(1), want["loss"], tolerance)
        named = part(want, "metric.")
        assert named.keys() == metrics.keys()
        for name, value in named.items():
            assert_close(metrics[name].reshape(1), value, tolerance)
        assert torch.equal(carry.halted, want["halted"])
        assert torch.equal(carry.steps, want["steps"])
        (loss / float(metadata["gradient_divisor"])).backward()
        assert torch.equal(model.puzzle_emb.local_ids, want["puzzle_emb_ids"])
        assert_close(model.puzzle_emb.local_weights.grad, want["puzzle_emb_grad"], tolerance)
        if index != 1:
            gradients = part(want, "grad.")
            assert gradients.keys() == {name for name, _ in model.named_parameters()}
            for name, parameter in model.named_parameters():
                assert_close(parameter.grad, gradients[name], tolerance)
        if index < 2:
            halted_before_last |= carry.halted
    assert halted_before_last.any(), "the numbers should cover rows that are refilled"


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

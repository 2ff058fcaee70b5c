"""EqR and URM against numbers that the published code computed, and against plain PyTorch (support/plain_family.py)."""

import copy
import functools
import json

import parity
import plain_family as plain
import pytest
import torch
from parity import part, read

import hrm
import hrm_kernels
from hrm.config import FAMILIES
from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy_with_argmax

EQR, URM = ("eqr_rope2d", "eqr_mlp_t"), ("urm",)


@pytest.fixture(params=[*EQR, *URM])
def golden(request):
    tensors, metadata = read(request.param)
    values = json.loads(metadata["config"])
    ours = {name: value for name, value in values.items() if name not in ("batch_size", "H_layers")}
    model = hrm.from_published(part(tensors, "state."), FAMILIES[metadata["family"]].parse(ours))
    return request.param, tensors, model, float(metadata["gradient_divisor"])


def with_identifiers(batch):
    """EqR's data has none."""
    return {"puzzle_identifiers": torch.zeros(len(batch["inputs"]), dtype=torch.int64)} | batch


def damping(model):
    """That of four rows, without noise as in the files."""
    return model.inner.damping(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int32))


def run(model, tensors, divisor, train):
    """Segments from the stored initial states: three without gradients, or two with; the last one's results."""
    inner, batch = model.inner, with_identifiers(part(tensors, "batch."))
    states = initial_states(tensors)
    model.train(train)
    with torch.set_grad_enabled(train):
        for _ in range(2 if train else 3):
            model.zero_grad()
            states = inner.segment(*(state.detach() for state in states), inner.embed(batch), damping(model))
            z_H, z_L = states
            logits, (q_halt, _) = inner.logits(z_H), inner.q_values(z_H)
            loss = published_loss(logits, q_halt, batch["labels"])
            if train:
                (loss / divisor).backward()
    if not train:
        kept = {"hidden": z_H} if isinstance(model, hrm.URM) else {"z_H": z_H, "z_L": z_L}
        return {"logits": logits, "q_halt": q_halt} | kept
    values = {"loss": loss.detach().view(1)}
    values |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    if model.puzzle_emb is not None:
        last = model.puzzle_emb.look_ups[-1]
        values |= {"puzzle_emb_grad": last.rows.grad, "puzzle_emb_ids": last.ids}
        model.puzzle_emb.forget()
    return values


def initial_states(tensors):
    """``z_H`` and ``z_L``; a URM has one state."""
    states = list(part(tensors, "init.").values())
    return states if len(states) == 2 else [states[0], states[0][:, :0]]


def published_loss(logits, q_halt, labels):
    losses, tokens = stablemax_cross_entropy_with_argmax(logits, labels, -100)
    labelled = labels != -100
    exact = ((tokens == labels) & labelled).sum(-1) == labelled.sum(-1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="sum")
    return (losses.sum(-1) / labelled.sum(-1).clamp(min=1)).sum() + 0.5 * bce


@functools.cache
def plain_runs(name, train):
    """In float64, in float32, and in float32 with two slightly different models."""
    tensors, metadata = read(name)
    arguments = tensors, json.loads(metadata["config"]), float(metadata["gradient_divisor"]), train
    others = [run_plain(*arguments, jitter=jitter) for jitter in (None, 0, 1)]
    return run_plain(*arguments, torch.float64), *others


def run_plain(tensors, values, divisor, train, dtype=torch.float32, jitter=None):
    """The same by plain PyTorch; ``jitter`` seeds a change of the weights by up to a unit in the last place."""
    state = {name: value.to(dtype) for name, value in part(tensors, "state.").items()}
    batch = part(tensors, "batch.")
    if "inner.puzzle_emb.weights" in state:  # a row for each look-up, which has a gradient of its own
        state["inner.puzzle_emb.weights"] = state["inner.puzzle_emb.weights"][batch["puzzle_identifiers"]]
        batch["puzzle_identifiers"] = torch.arange(len(batch["inputs"]))
    if jitter is not None:
        generator = torch.Generator().manual_seed(jitter)
        state = {
            name: value * (1 + (torch.rand(value.shape, generator=generator) - 0.5) * 2**-22).to(dtype)
            for name, value in state.items()
        }
    state = {name: value.clone().requires_grad_(train) for name, value in state.items()}
    states = [one.to(dtype) for one in part(tensors, "init.").values()]
    with torch.set_grad_enabled(train):
        for _ in range(2 if train else 3):
            for value in state.values():
                value.grad = None
            x = plain.embed(state, values, batch)
            segment = plain.urm_segment if "num_layers" in values else plain.eqr_segment
            states = segment(state, values, *(one.detach() for one in states), x)
            cells = states[0][:, states[0].shape[1] - values["seq_len"] :]
            logits = torch.nn.functional.linear(cells, state["inner.lm_head.weight"])
            q = torch.nn.functional.linear(states[0][:, 0], state["inner.q_head.weight"], state["inner.q_head.bias"])
            loss = plain.stablemax_loss(logits, q[:, 0], batch["labels"])
            if train:
                (loss / divisor).backward()
    if not train:
        names = ("z_H", "z_L") if len(states) == 2 else ("hidden",)
        return {"logits": logits, "q_halt": q[:, 0]} | dict(zip(names, states, strict=True))
    found = {f"grad.{name}": value.grad for name, value in state.items() if value.grad is not None}
    if (table := found.pop("grad.inner.puzzle_emb.weights", None)) is not None:
        found |= {"puzzle_emb_grad": table, "puzzle_emb_ids": part(tensors, "batch.")["puzzle_identifiers"]}
    return found | {"loss": loss.detach().view(1)}


def test_the_state_dict_has_the_published_names_and_values(golden):
    _, tensors, model, _ = golden
    state, want = model.state_dict(), part(tensors, "state.")
    assert state.keys() == want.keys() and all(torch.equal(state[name], want[name]) for name in want)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_segments_are_as_accurate_as_the_published_numbers(golden, backend, train):
    name, tensors, model, divisor = golden
    with hrm_kernels.use_backend(backend):
        got = run(model, tensors, divisor, train)
    exact, *others = plain_runs(name, train)
    stored = part(tensors, "train.1." if train else "eval.2.")
    assert got.keys() == stored.keys()
    parity.assert_as_exact([got], [stored], [[other] for other in others], [exact])


def test_fused_segments_are_the_loops(golden):
    _, tensors, model, _ = golden
    x = model.inner.embed(with_identifiers(part(tensors, "batch.")))
    states = initial_states(tensors)
    with torch.no_grad(), hrm_kernels.use_backend("reference"):
        fused, loops = (run(*states, x, damping(model)) for run in (model.inner.segment, model.inner.loops))
        for one, other in zip(fused, loops, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_gradients_with_recomputation_are_the_same(golden):
    _, tensors, model, divisor = golden
    with hrm_kernels.use_backend("reference"):
        want = run(model, tensors, divisor, True)
        other = copy.deepcopy(model)
        other.config = other.inner.config = model.config.model_copy(update={"recompute": True})
        got = run(other, tensors, divisor, True)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=4e-6 * value.abs().max().item())

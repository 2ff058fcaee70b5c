"""What a model answers in evaluation and in training, for comparison with the published code.

Sums run in the machine's own order (MKL, oneDNN), and a few segments multiply what that rounds. So numbers that were
stored on another machine are held to two rules: the published arithmetic, run here, gives what ours does; and ours is
as near to float64 as the stored numbers and plain PyTorch are.
"""

import copy
import json
from pathlib import Path

import torch
from safetensors import safe_open

import hrm
import hrm_kernels
from bench import published
from hrm.config import DTYPES, FAMILIES

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def golden_model(name):
    """The stored tensors, their metadata, and the model they were made with."""
    tensors, metadata = read(name)
    values = json.loads(metadata["config"])
    family = "trm" if name.startswith("trm") else "hrm"
    for one in ("batch_size", "H_layers") if family == "trm" else ("batch_size",):  # the published TRM uses neither
        del values[one]
    prefixed = {f"_orig_mod.model.{key}": value for key, value in part(tensors, "state.").items()}
    return tensors, metadata, hrm.from_published(prefixed, FAMILIES[family].parse(values))


def as_published(model, *arguments):
    return published.forward(model, *arguments)


def ours(model, *arguments):
    return model(*arguments)


def evaluation(model, tensors, call=ours):
    """Three segments from a fresh carry, each as a dict by the stored files' names."""
    model.eval()
    batch = part(tensors, "batch.")
    carry, found = _initial_carry(model, batch, call), []
    for _ in range(3):
        with torch.no_grad():
            carry, outputs = call(model, carry, batch)
            q = model.inner.q_head(carry.z_H[:, 0])
        found.append(
            {"logits": outputs["logits"], "q_halt": outputs["q_halt_logits"], "q_continue": q[:, 1]}
            | {"z_H": carry.z_H, "z_L": carry.z_L, "halted": carry.halted, "steps": carry.steps}
        )
    return found


def training(model, tensors, metadata, call=ours):
    """Three training calls with fixed weights, each as a dict by the stored files' names."""
    model.train()
    carry, found = _initial_carry(model, part(tensors, "batch."), call), []
    divisor = float(metadata["gradient_divisor"])
    for index in range(3):
        model.zero_grad()
        carry, outputs = call(model, carry, part(tensors, "batch." if index == 0 else f"train.{index}.batch."))
        loss, metrics = hrm.act_loss(carry, outputs, metadata["loss"])
        (loss / divisor).backward()
        table = model.puzzle_emb
        found.append(
            {"loss": loss, "halted": carry.halted, "steps": carry.steps}
            | {f"metric.{name}": value for name, value in metrics.items()}
            | {"puzzle_emb_ids": table.local_ids, "puzzle_emb_grad": table.local_weights.grad}
            | ({f"grad.{name}": p.grad.clone() for name, p in model.named_parameters()} if index != 1 else {})
        )
        table.forget()
    return found


def _initial_carry(model, batch, call):
    carry = model.initial_carry(batch)
    wide = next(model.parameters()).dtype is torch.float64
    return published.carry_in_float64(carry) if wide and call is as_published else carry


def in_float64(model, function, monkeypatch):
    """``function(a copy of the model that computes in float64)``."""
    with monkeypatch.context() as patch, hrm_kernels.use_backend("reference"):
        patch.setitem(DTYPES, "float32", torch.float64)
        wide = copy.deepcopy(model).double()
        for module in wide.modules():
            if getattr(module, "dtype", None) is torch.float32:  # of an embedding's look-ups
                module.dtype = torch.float64
        return function(wide)


def assert_the_same(got, want):
    """To 1e-6 of the largest element, for what the same machine computes in the same order.

    Gradients to 4e-6: autograd adds those of several uses in an order of its own.
    """
    for one, other in zip(got, want, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if value.dtype.is_floating_point:
                error, size = _error(value, other[name]), other[name].abs().max().clamp(min=1e-30)
                assert error <= (4e-6 if "grad" in name else 1e-6) * size, f"{name}: relative error {error / size:.1e}"
            else:
                assert torch.equal(value, other[name]), name


def assert_as_exact(got, stored, plain, exact):
    """Every value's error against float64 is at most twice that of plain PyTorch, here or where the numbers were made.

    Args:
        got, exact: a dict for each call.
        stored: the same, of the published file; it may hold more.
        plain: several runs of plain PyTorch.
    """
    for index, (values, truth) in enumerate(zip(got, exact, strict=True)):
        for name, value in values.items():
            want = stored[index][name]
            want = want.reshape(value.shape)
            if not value.dtype.is_floating_point:
                assert torch.equal(value, want), f"call {index}, {name}"
                continue
            errors = [_error(other, truth[name]) for other in (want, *(run[index][name] for run in plain))]
            error, size = _error(value, truth[name]), truth[name].abs().max()
            assert error <= 2 * max(errors) + 1e-6 * size, (
                f"call {index}, {name}: off by {error / size:.1e}, plain PyTorch by {max(errors) / size:.1e}"
            )
            assert max(errors) <= 1e-3 * size, f"call {index}, {name}: the published numbers are of something else"


def _error(got, want):
    return (got.detach().double() - want.detach().double()).abs().max() if got.numel() else torch.zeros(())

"""Which updates of an HRM's segment carry gradients, and how much memory that needs. (TRM: test_trm.py.)"""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hrm
import hrm_kernels
from hrm.config import DTYPES
from hrm_kernels.fixed_point import warm_up

SMALL = {
    "seq_len": 6, "vocab_size": 7, "num_puzzle_identifiers": 4, "puzzle_emb_ndim": 32, "hidden_size": 32,
    "H_layers": 1, "L_layers": 2, "num_heads": 2, "expansion": 1.0, "H_cycles": 3, "L_cycles": 2,
    "forward_dtype": "float32",
}  # fmt: skip


def build(**values):
    torch.manual_seed(0)
    model = hrm.HRM(hrm.HRMConfig.parse(SMALL | values)).train()
    if model.puzzle_emb:
        torch.nn.init.normal_(model.puzzle_emb.weights)
    torch.nn.init.normal_(model.inner.q_head.weight)
    return model


def random_batch(rows=3):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 7, (2, rows, 6), generator=generator, dtype=torch.int32)
    return {"inputs": tokens[0], "labels": tokens[1], "puzzle_identifiers": torch.arange(rows, dtype=torch.int32) % 4}


def fresh(inner, x):
    return (init.to(x.dtype).expand_as(x) for init in (inner.H_init, inner.L_init))


def written_out(model, batch, with_gradients):
    """The segment, update by update with the whole graph; states are detached before the last ``with_gradients``."""
    inner, config = model.inner, model.config
    x = inner.embed(batch)
    z_H, z_L = fresh(inner, x)
    updates = (["L"] * config.L_cycles + ["H"]) * config.H_cycles
    for index, update in enumerate(updates):
        if index == len(updates) - with_gradients:
            z_H, z_L = z_H.detach(), z_L.detach()
        if update == "L":
            z_L = inner.L_level(z_L, z_H + x, inner.cos, inner.sin)
        else:
            z_H = inner.H_level(z_H, z_L, inner.cos, inner.sin)
    return z_H, z_L


def gradients(model, batch, z):
    """The states, and the gradients of a loss on all elements of z_H; by name, with the rows of the puzzles."""
    model.zero_grad()
    z_H, z_L = z(model, batch)
    (z_H * torch.linspace(-1, 1, z_H.numel()).view_as(z_H)).sum().backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"z_H": z_H, "z_L": z_L, "puzzles": model.puzzle_emb.local_weights.grad, **named}


def segment(model, batch):
    inner = model.inner
    x = inner.embed(batch)
    return inner.segment(*fresh(inner, x), x)


MODES = [("one_step", 2), ("last_cycle", 3), ("full", 9), (1, 1), (2, 2), (4, 4), (5, 5), (8, 8), (50, 9)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("gradient", "updates"), MODES)
def test_gradients_are_those_of_the_full_graph_with_earlier_updates_detached(gradient, updates, recompute):
    model, batch = build(gradient=gradient, recompute=recompute), random_batch()
    with hrm_kernels.use_backend("reference"):  # the same sums in the same order
        got = gradients(model, batch, segment)
        want = gradients(model, batch, lambda model, batch: written_out(model, batch, updates))
    for name, value in want.items():
        if value is None:
            assert got[name] is None, name
        else:
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)
    reached = {"inner.H_level.layers.0.mlp.down_proj.weight": 1, "inner.L_level.layers.0.mlp.down_proj.weight": 2}
    assert all((got[name] is not None) == (updates >= least) for name, least in reached.items())


@pytest.mark.parametrize("cycles", [(1, 1), (1, 3), (4, 1)])
def test_other_numbers_of_cycles(cycles):
    H_cycles, L_cycles = cycles
    batch, total = random_batch(), H_cycles * (L_cycles + 1)
    for gradient in ("one_step", "last_cycle", "full", 3):
        updates = {"one_step": 2, "last_cycle": L_cycles + 1, "full": total, 3: min(3, total)}[gradient]
        model = build(H_cycles=H_cycles, L_cycles=L_cycles, gradient=gradient)
        with hrm_kernels.use_backend("reference"):
            got = gradients(model, batch, segment)
            want = gradients(model, batch, lambda model, batch, k=updates: written_out(model, batch, k))
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=f"{gradient} {name}")


def test_the_chosen_backend_agrees_with_the_reference():
    batch = random_batch()
    for gradient in ("one_step", 4, "full"):
        model = build(gradient=gradient)
        got = gradients(model, batch, segment)
        with hrm_kernels.use_backend("reference"):
            want = gradients(model, batch, segment)
        for name, value in want.items():
            if value is None:  # the heads have none
                continue
            scale = value.abs().max()
            torch.testing.assert_close(got[name] / scale, value / scale, rtol=0, atol=1e-4, msg=f"{gradient} {name}")


def test_which_cycles_run_in_one_call_without_gradients(monkeypatch):
    """Those before the updates with gradients; without any gradients all cycles but their last two updates."""
    calls, real = [], hrm_kernels.recurrent_cycles
    monkeypatch.setattr(hrm_kernels, "recurrent_cycles", lambda *args: calls.append(args[8]) or real(*args))
    batch = random_batch()
    for gradient, cycles in (("one_step", [3]), (1, [3]), ("last_cycle", [2]), (5, [2]), (6, [1]), ("full", [])):
        calls.clear()
        segment(build(gradient=gradient), batch)
        assert calls == cycles, gradient
        with torch.no_grad():
            segment(build(gradient=gradient), batch)
        assert calls == [*cycles, 3], gradient


def test_in_bfloat16_the_gradients_of_several_uses_are_added_in_float32(monkeypatch):
    """Against float64: no worse than plain PyTorch, which converts a weight at each use."""
    batch, errors = random_batch(), {}
    monkeypatch.setitem(DTYPES, "float32", torch.float64)
    exact = build(gradient="full").double()
    with hrm_kernels.use_backend("reference"):
        wide = gradients(exact, batch, lambda model, batch: written_out(model, batch, 9))
        model = build(gradient="full", forward_dtype="bfloat16")
        for name, z in (("plain", lambda model, batch: written_out(model, batch, 9)), ("ours", segment)):
            narrow = gradients(model, batch, z)
            errors[name] = {
                key: (narrow[key].double() - value.double()).abs().max() / value.abs().max()
                for key, value in wide.items()
                if value is not None  # the heads have none
            }
    for key, plain in errors["plain"].items():
        assert errors["ours"][key] <= 2 * plain + 1e-3, key


class Live(TorchDispatchMode):
    """Bytes of the tensors made in this context: now, and the peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, address, size):
        self.seen.discard(address)
        self.now -= size


def live_bytes(cycles, recompute):
    """After a segment with gradients through all updates, the peak until the end of the backward, and of a state."""
    model, batch = build(gradient="full", recompute=recompute, H_cycles=cycles), random_batch(rows=64)
    with Live() as live:
        z_H, z_L = segment(model, batch)
        gc.collect()
        held = live.peak = live.now
        (z_H.sum() + z_L.sum()).backward()
    return held, live.peak, z_H.numel() * 4


def test_recomputation_keeps_memory_flat_in_the_number_of_cycles():
    with hrm_kernels.use_backend("reference"):
        held, peak, state = live_bytes(2, True)
        held_many, peak_many, _ = live_bytes(16, True)
        assert held_many == held
        assert peak_many - peak <= 2 * 3 * state  # from 6 to 48 updates: three more halvings, each holds both states
        plain, plain_peak, _ = live_bytes(16, False)
        assert plain > 20 * held_many and plain_peak > 4 * peak_many


def test_it_compiles_in_one_graph():
    torch._dynamo.reset()
    # without a puzzle embedding: its rows are leaves outside the graph
    model, batch = build(gradient=4, puzzle_emb_ndim=0), random_batch()
    carry, least = model.initial_carry(batch), torch.zeros(3, dtype=torch.int32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for k in (4, 5):  # the mode is read at each call
        model.inner.gradient = k
        gradients_of = []
        for call in (compiled, model):
            model.zero_grad()
            loss, _ = hrm.act_loss(*call(carry, batch, least))
            loss.backward()
            gradients_of.append([parameter.grad.clone() for parameter in model.parameters()])
        for a, b in zip(*gradients_of, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_configuration():
    config = hrm.HRMConfig(seq_len=6, vocab_size=7)
    assert (config.gradient, config.recompute) == ("one_step", False) and config.learns_to_continue
    assert hrm.HRMConfig.parse(config.model_dump()) == config
    for wrong in (0, "two_step", -1):
        with pytest.raises(hrm.InputError, match="gradient"):
            hrm.HRMConfig.parse({"seq_len": 6, "vocab_size": 7, "gradient": wrong})


def test_a_warm_up_reaches_the_full_graph():
    model, batch = build(gradient="full"), random_batch()
    with hrm_kernels.use_backend("reference"):
        for step in range(8):
            model.inner.gradient = warm_up(step, 7, 9, first=2)
            got = gradients(model, batch, segment)
            want = gradients(model, batch, lambda model, batch, k=2 + step: written_out(model, batch, k))
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)

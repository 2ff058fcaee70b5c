"""The tiny recursive model: sizes, gradients, halting, saving and loading, training."""

import pytest
import torch
import yaml

import hrm
import hrm_kernels
from hrm.config import FAMILIES

SMALL = {
    "seq_len": 6, "vocab_size": 7, "num_puzzle_identifiers": 4, "puzzle_emb_ndim": 32, "puzzle_emb_len": 2,
    "hidden_size": 32, "num_heads": 2, "expansion": 1.0, "H_cycles": 3, "L_cycles": 2, "forward_dtype": "float32",
}  # fmt: skip
MIXING = {"mlp_t": True, "pos_encodings": "none"}


def test_published_sizes():
    """As in the paper: 5 M parameters with mixing on 9 x 9 Sudoku, 7 M with attention."""
    sudoku = {"seq_len": 81, "vocab_size": 11, "puzzle_emb_ndim": 512}
    with torch.device("meta"):
        models = hrm.TRM(hrm.TRMConfig(**sudoku)), hrm.TRM(hrm.TRMConfig(**sudoku, **MIXING))
    attention, mixing = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
    assert attention == 2 * 3_407_872 + 2 * 11 * 512 + 2 * 513
    # a block of mixing: inner size 512 (97 positions), three matrices
    assert mixing == 2 * (3 * 512 * 97 + 3 * 512 * 1536) + 2 * 11 * 512 + 2 * 513


def random_batch(rows=3):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 7, (2, rows, 6), generator=generator, dtype=torch.int32)
    return {"inputs": tokens[0], "labels": tokens[1], "puzzle_identifiers": torch.arange(rows, dtype=torch.int32)}


def build(**values):
    torch.manual_seed(0)
    model = hrm.TRM(hrm.TRMConfig.parse(SMALL | values))
    torch.nn.init.normal_(model.puzzle_emb.weights)
    torch.nn.init.normal_(model.inner.q_head.weight)
    return model


def written_out(model, batch, with_gradients):
    """The segment, update by update; the last ``with_gradients`` updates carry gradients."""
    inner, config = model.inner, model.config
    tables = () if config.mlp_t else (inner.cos, inner.sin)
    x = inner.embed(batch)
    z_H, z_L = (init.expand(len(x), config.positions, -1) for init in (inner.H_init, inner.L_init))
    updates = ["L"] * config.L_cycles + ["H"]
    updates = updates * config.H_cycles
    for index, update in enumerate(updates):
        with torch.set_grad_enabled(index >= len(updates) - with_gradients):
            if update == "L":
                z_L = inner.L_level(z_L, z_H + x, *tables)
            else:
                z_H = inner.L_level(z_H, z_L, *tables)
    return z_H, z_L


@pytest.mark.parametrize(
    ("gradient", "updates"), [("one_step", 2), ("last_cycle", 3), ("full", 9), (1, 1), (4, 4), (7, 7), (50, 9)]
)
@pytest.mark.parametrize("mixing", [{}, MIXING])
def test_gradient_modes(gradient, updates, mixing):
    with hrm_kernels.use_backend("reference"):  # the same sums in the same order
        check_gradient_mode(gradient, updates, mixing)


def check_gradient_mode(gradient, updates, mixing):
    batch = random_batch()
    model = build(gradient=gradient, **mixing).train()
    for recompute in (False, True):
        model.zero_grad()
        model.inner.config = model.config.model_copy(update={"recompute": recompute})
        inner = model.inner
        x = inner.embed(batch)
        z = (init.expand(len(x), model.config.positions, -1) for init in (inner.H_init, inner.L_init))
        got = inner.segment(*z, x)
        weight = torch.linspace(-1, 1, got[0].numel()).view_as(got[0])
        (got[0] * weight).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad()
        want = written_out(model, batch, updates)
        (want[0] * weight).sum().backward()
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                assert gradients[name] is None
            else:
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_halting():
    """Rows halt where q_halt > 0, or above q_continue if that is learned, which also has a target."""
    batch = random_batch()
    for continues in (False, True):
        model = build(no_ACT_continue=not continues, halt_exploration_prob=0.0).train()
        carry, outputs = model(model.initial_carry(batch), batch)
        q = model.inner.q_head(carry.z_H[:, 0])
        assert torch.equal(carry.halted, q[:, 0] > (q[:, 1] if continues else 0))
        _, metrics = hrm.act_loss(carry, outputs)
        assert ("q_continue_loss" in metrics) == ("target_q_continue" in outputs) == continues
        if continues:
            following = model.inner.segment(carry.z_H, carry.z_L, model.inner.embed(batch))[0]
            q = model.inner.q_head(following[:, 0])
            torch.testing.assert_close(outputs["target_q_continue"], q.max(-1).values.sigmoid())


@pytest.mark.parametrize("mixing", [{}, MIXING])
def test_save_and_load(mixing, tmp_path):
    model = build(**mixing)
    hrm.save(model, tmp_path / "model")
    loaded = hrm.load(tmp_path / "model")
    assert isinstance(loaded, hrm.TRM) and loaded.config == model.config and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    (tmp_path / "model" / "config.json").write_text('{"family": "other", "model": {}}')
    with pytest.raises(hrm.InputError, match="holds a model of family 'other'; this version loads hrm, trm"):
        hrm.load(tmp_path / "model")


@pytest.mark.parametrize("mixing", [{}, MIXING])
def test_published_checkpoint(mixing, tmp_path):
    model = build(**mixing)
    arch = {name: value for name, value in (SMALL | mixing).items() if name not in hrm.HRMConfig.model_fields}
    arch |= {name: SMALL[name] for name in ("H_cycles", "L_cycles", "hidden_size", "num_heads", "expansion")}
    arch |= {
        "name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
        "loss": {"name": "losses@ACTLossHead"},
    }
    arch |= {"H_layers": 0, "L_layers": 2, "halt_exploration_prob": 0.1, "halt_max_steps": 16, "no_ACT_continue": True}
    arch |= {"puzzle_emb_ndim": "${.hidden_size}", "forward_dtype": "bfloat16"}
    arch |= {"pos_encodings": mixing.get("pos_encodings", "rope")}
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch, "ema": True, "lr": 1e-4}))
    torch.save({f"_orig_mod.model.{name}": value for name, value in model.state_dict().items()}, tmp_path / "step_7")
    loaded = hrm.load(tmp_path, seq_len=None if mixing else 6)  # the mixing matrices tell the number of positions
    assert isinstance(loaded, hrm.TRM) and loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_configuration():
    sizes = {"seq_len": 6, "vocab_size": 7, "hidden_size": 32, "num_heads": 2}
    assert hrm.TRMConfig(**sizes).puzzle_emb_len == 0
    assert hrm.TRMConfig(**sizes, puzzle_emb_ndim=33).puzzle_emb_len == 16
    short = hrm.TRMConfig(**sizes, puzzle_emb_ndim=33, puzzle_emb_len=0)
    assert (short.puzzle_emb_len, short.positions) == (2, 8)
    assert hrm.TRMConfig.parse(short.model_dump()) == short
    assert FAMILIES["trm"] is hrm.TRMConfig and FAMILIES["hrm"] is hrm.HRMConfig
    for values, message in (
        ({"puzzle_emb_ndim": 65, "puzzle_emb_len": 2}, "2 positions of 32 cannot hold puzzle_emb_ndim 65; use 3"),
        ({"mlp_t": True}, "set pos_encodings=none"),
        ({"gradient": 0}, "gradient"),
        ({"H_layers": 2}, "H_layers"),
        ({"num_heads": 3}, "not a multiple of num_heads 3"),
    ):
        with pytest.raises(hrm.InputError, match=message):
            hrm.TRMConfig.parse(sizes | values)


def test_mixing_without_identifiers_learns():
    """The loss falls in a few steps on one batch."""
    from hrm_kernels.optim import AdamATan2

    torch.manual_seed(0)
    config = hrm.TRMConfig.parse(SMALL | MIXING | {"puzzle_emb_ndim": 0, "halt_max_steps": 2})
    model, batch = hrm.TRM(config).train(), random_batch()
    optimizer = AdamATan2(model.parameters(), lr=3e-3)
    losses, carry = [], model.initial_carry(batch)
    for _ in range(150):
        optimizer.zero_grad()
        carry, outputs = model(carry, batch)
        loss, metrics = hrm.act_loss(carry, outputs)
        loss.backward()
        optimizer.step()
        losses.append(metrics["lm_loss"].item())
    assert losses[-1] < 0.1 * losses[0]


def test_evaluation_and_halting_by_q_values(tmp_path):
    """A TRM is evaluated like any other model, and halts where q_halt > 0."""
    import numpy as np

    from hrm.data.format import SetBuilder, open_dataset, write_dataset
    from hrm.inference.evaluate import evaluate
    from hrm.inference.segments import segments

    rng, builder = np.random.default_rng(0), SetBuilder()
    inputs = rng.integers(1, 7, (9, 6))
    builder.add_puzzles(inputs, inputs[:, ::-1])
    write_dataset(tmp_path / "data", {"test": {"all": builder}}, vocab_size=7, seq_len=6)
    model = build(num_puzzle_identifiers=1, halt_max_steps=3, **MIXING)
    result = evaluate(model, open_dataset(tmp_path / "data", "test"), batch_size=4)
    batch = {"inputs": torch.tensor(inputs), "puzzle_identifiers": torch.zeros(9, dtype=torch.int64)}
    model.eval()
    steps = torch.full((9,), 3)
    right = torch.zeros(9, dtype=torch.bool)
    for segment in segments(model, batch, 3):
        halts = model.inner.q_head(segment.carry.z_H[:, 0])[:, 0] > 0
        steps = torch.where(halts & (steps == 3), segment.step, steps)
        right = (segment.tokens.numpy() == inputs[:, ::-1]).all(-1)
    assert result.count == 9 and result.steps == 3
    assert result.early_steps == pytest.approx(steps.float().mean().item())
    assert result.exact_accuracy == pytest.approx(right.mean())
    assert steps.unique().numel() > 1, "rows should halt at different segments"

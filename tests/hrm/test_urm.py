"""The universal reasoning model: one state, gradients through the last cycle, halting, saving, training."""

import pytest
import torch

import hrm
import hrm_kernels
from hrm.families import weight_shapes
from hrm.training.step import Update, segment_loss, train_step
from hrm_kernels.optim import AdamATan2, SparseSignSGD

SMALL = {
    "seq_len": 6, "vocab_size": 7, "num_puzzle_identifiers": 4, "puzzle_emb_ndim": 32, "hidden_size": 32,
    "num_heads": 2, "expansion": 0.5, "H_cycles": 2, "L_cycles": 2, "num_layers": 1, "loops": 3,
    "forward_dtype": "float32",
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = hrm.URM(hrm.URMConfig.parse(SMALL))
    torch.nn.init.normal_(model.puzzle_emb.weights)
    torch.nn.init.normal_(model.inner.q_head.weight)
    return model


def batch(rows=3):
    tokens = torch.randint(1, 7, (2, rows, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return {"inputs": tokens[0], "labels": tokens[1], "puzzle_identifiers": torch.arange(rows, dtype=torch.int32)}


def test_the_published_model_has_its_sizes():
    config = hrm.URMConfig(seq_len=900, vocab_size=12, puzzle_emb_ndim=512)
    block = 4 * 512 * 512 + 3 * 512 * 1536 + 3 * 1536
    buffers = 2 * 512  # init_hidden, and the embedding of one puzzle
    assert (
        sum(shape.numel() for shape in weight_shapes(config).values()) == 8 * block + 2 * 12 * 512 + 2 * 513 + buffers
    )
    assert config.halt_max_steps == 16 and config.positions == 901


@pytest.mark.parametrize(("gradient", "updates"), [("last_cycle", 2), ("one_step", 1), (3, 3), ("full", 4)])
def test_the_last_updates_carry_gradients(model, gradient, updates):
    inner = model.inner
    inner.gradient = gradient
    x = inner.embed(batch()).detach()
    states = inner.initial_states(torch.zeros(3, dtype=torch.int64))
    hidden = states[0]
    with hrm_kernels.use_backend("reference"):
        for index in range(4):
            with torch.set_grad_enabled(index >= 4 - updates):
                hidden = inner.update_hidden(hidden, x)
        for run in (inner.segment, inner.loops):
            z_H, z_L = run(*states, x)
            assert z_L.shape == (3, 0, 32)
            gradients = []
            for z in (z_H, hidden):
                loss = (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum()
                gradients.append(torch.autograd.grad(loss, inner.layers.parameters(), retain_graph=True))
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rows_halt_by_q_halt_and_are_refilled(model):
    model.train()
    data = batch()
    carry = model.initial_carry(data)
    model.inner.q_head.bias.data[0] = 100
    carry, outputs = model(carry, data, torch.tensor([0, 2, 0], dtype=torch.int32))
    assert carry.halted.tolist() == [True, False, True] and "target_q_continue" not in outputs
    assert not outputs["q_continue_logits"].any()
    carry, _ = model(carry, data, torch.zeros(3, dtype=torch.int32))
    assert carry.steps.tolist() == [1, 2, 1] and carry.halted.all()


def test_it_learns(model):
    data = batch()
    model.train()
    carry, losses = model.initial_carry(data), []
    update = Update([AdamATan2(model.parameters(), lr=1e-2), SparseSignSGD([model.puzzle_emb], lr=1e-2)], 3)
    for _ in range(15):
        loss, (carry, _) = train_step(lambda: segment_loss(model, carry, data), update)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_save_and_load(model, tmp_path):
    hrm.save(model, tmp_path / "saved")
    loaded = hrm.load(tmp_path / "saved", forward_dtype="float32")
    assert type(loaded) is hrm.URM and loaded.config == model.config
    data = batch()
    model.eval()
    with torch.no_grad():
        one, other = (each(each.initial_carry(data), data)[1]["logits"] for each in (model, loaded))
    assert torch.equal(one, other)


def test_loops_and_halt_max_steps_are_the_same_setting():
    assert hrm.URMConfig.parse(SMALL).halt_max_steps == 3
    with pytest.raises(hrm.InputError, match="loops is the published name of halt_max_steps; pass one of them"):
        hrm.URMConfig.parse(SMALL | {"halt_max_steps": 3})

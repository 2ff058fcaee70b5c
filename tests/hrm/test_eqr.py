"""Equilibrium reasoners: random starts, damped and noisy updates, trajectories that depend on their seeds only."""

import pytest
import torch
from plain_family import rope2d

import hrm
import hrm_kernels
from hrm.analysis.states import state_updates
from hrm.training.step import Update, segment_loss, train_step
from hrm_kernels.nn import RoPEAttention, rope_tables_2d
from hrm_kernels.optim import AdamATan2

SMALL = {
    "seq_len": 9, "vocab_size": 7, "hidden_size": 32, "num_heads": 2, "expansion": 0.5, "H_cycles": 2, "L_cycles": 2,
    "L_layers": 1, "noise_scale": 0.1, "lambda_": 0.8, "halt_max_steps": 4, "forward_dtype": "float32",
}  # fmt: skip
KINDS = {"attention": {"pos_encodings": "rope2d"}, "mixing": {"mlp_t": True, "pos_encodings": "none"}}
SEEDS = torch.tensor([5, -3, 2**40])


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    model = hrm.EqR(hrm.EqRConfig.parse(SMALL | KINDS[request.param]))
    torch.nn.init.normal_(model.inner.q_head.weight)
    return model.eval()


def batch(rows=3):
    tokens = torch.randint(1, 7, (2, rows, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return {"inputs": tokens[0], "labels": tokens[1], "puzzle_identifiers": torch.zeros(rows, dtype=torch.int32)}


def segments(model, data, seeds, count=2):
    carry = model.initial_carry(data)
    carry.seeds = seeds
    with torch.no_grad():
        for _ in range(count):
            carry, outputs = model(carry, data)
    return carry, outputs


def test_rows_start_from_random_states_of_their_seeds(model):
    z_H, z_L = model.inner.initial_states(torch.arange(64))
    for state in (z_H, z_L):
        assert state.shape == (64, 9, 32) and abs(state.mean()) < 0.02 and abs(state.std() - 1) < 0.02
    assert abs((z_H * z_L).mean()) < 0.03 and abs((z_H * z_H.roll(1, 0)).mean()) < 0.03
    assert torch.equal(model.inner.initial_states(torch.tensor([17]))[0][0], z_H[17])
    wide = hrm.EqR(model.config.model_copy(update={"H_init_std": 2.0, "L_init_std": 0.0})).inner
    assert torch.equal(wide.initial_states(SEEDS)[0], 2 * model.inner.initial_states(SEEDS)[0])
    assert not wide.initial_states(SEEDS)[1].any()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_trajectory_does_not_depend_on_its_neighbours(model, backend):
    data = batch()
    with hrm_kernels.use_backend(backend):
        together, _ = segments(model, data, SEEDS)
        for row in range(3):
            alone, _ = segments(model, {name: one[row : row + 1] for name, one in data.items()}, SEEDS[row : row + 1])
            for state, other in ((alone.z_H[0], together.z_H[row]), (alone.z_L[0], together.z_L[row])):
                if backend == "cpu":
                    assert torch.equal(state, other)
                torch.testing.assert_close(state, other, rtol=0, atol=1e-4)


def test_a_row_that_starts_later_runs_the_same(model):
    data = batch()
    with torch.no_grad(), hrm_kernels.use_backend("cpu"):
        carry = model.initial_carry(data)
        carry.seeds = torch.zeros(3, dtype=torch.int64)
        carry, _ = model(carry, data)
        carry.halted[1] = True
        carry.seeds[1] = SEEDS[1]
        for _ in range(2):
            carry, _ = model(carry, data)
        carry_of_seeds, _ = segments(model, data, SEEDS)
    assert torch.equal(carry.z_H[1], carry_of_seeds.z_H[1]) and carry.steps.tolist() == [3, 2, 3]


def test_other_seeds_are_other_trajectories(model):
    data = batch()
    one, again, other = (segments(model, data, seeds)[0] for seeds in (SEEDS, SEEDS, SEEDS + 1))
    assert torch.equal(one.z_H, again.z_H)
    assert ((one.z_H - other.z_H).abs().amax((1, 2)) > 0.05).all()


def test_answers_in_evaluation_do_not_depend_on_the_place_in_a_batch_or_on_the_global_generator(model):
    data = batch()
    assert not model.initial_carry(data).seeds.any()
    one, _ = segments(model, data, model.initial_carry(data).seeds)
    torch.manual_seed(9)
    other, _ = segments(model, data, model.initial_carry(data).seeds)
    assert torch.equal(one.z_H, other.z_H)


def test_in_training_every_row_and_every_start_has_a_seed_of_its_own(model):
    model.train()
    data, seen = batch(), set()
    carry = model.initial_carry(data)
    for _ in range(4):
        carry.halted[:] = True
        carry, _ = model(carry, data, torch.zeros(3, dtype=torch.int32))
        seen |= set(carry.seeds.tolist())
    assert len(seen) == 12
    before = carry.seeds
    carry.halted[:] = False
    assert torch.equal(model(carry, data)[0].seeds, before)


def test_fused_segments_are_the_loops_with_the_same_noise(model):
    x, states = model.inner.embed(batch()), model.inner.initial_states(SEEDS)
    damping = model.inner.damping(SEEDS, torch.tensor([0, 3, 1]))
    with hrm_kernels.use_backend("reference"):
        for fused, loops in zip(model.inner.segment(*states, x, damping), model.inner.loops(*states, x, damping)):
            torch.testing.assert_close(fused, loops, rtol=0, atol=1e-5)


def test_recomputation_draws_the_same_noise(model):
    gradients = []
    for recompute in (False, True):
        model.config = model.inner.config = model.config.model_copy(update={"recompute": recompute})
        model.zero_grad()
        x, states = model.inner.embed(batch()), model.inner.initial_states(SEEDS)
        z_H, _ = model.inner.segment(*states, x, model.inner.damping(SEEDS, torch.tensor([0, 3, 1])))
        (z_H * torch.linspace(-1, 1, z_H.numel()).view_as(z_H)).sum().backward()
        gradients.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())


def test_it_learns(model):
    data = batch()
    model.train()
    carry, losses = model.initial_carry(data), []
    update = Update([AdamATan2(model.parameters(), lr=1e-2)], 3)
    for _ in range(15):
        loss, (carry, _) = train_step(lambda: segment_loss(model, carry, data), update)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_save_and_load(model, tmp_path):
    hrm.save(model, tmp_path / "saved")
    loaded = hrm.load(tmp_path / "saved", forward_dtype="float32")
    assert type(loaded) is hrm.EqR and loaded.config == model.config
    data = batch()
    for one, other in zip(segments(model, data, SEEDS), segments(loaded, data, SEEDS), strict=True):
        state, want = (x.z_H if isinstance(x, hrm.Carry) else x["logits"] for x in (one, other))
        assert torch.equal(state, want)


def test_state_updates_end_in_the_carry(model):
    data = batch()
    *_, last = state_updates(model, data, 2)
    carry, _ = segments(model, data, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(last.after, carry.z_H, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_attention_turns_heads_by_row_and_column(prefix, backend):
    torch.manual_seed(0)
    layer = RoPEAttention(32, 2, rope2d=True)
    x = torch.randn(2, prefix + 6, 32)
    q, k, v = layer.qkv_proj(x).view(2, -1, 6, 16).chunk(3, 2)
    q, k = rope2d(q, (2, 3), prefix), rope2d(k, (2, 3), prefix)
    out = torch.nn.functional.scaled_dot_product_attention(*(one.transpose(1, 2) for one in (q, k, v)))
    want = layer.o_proj(out.transpose(1, 2).reshape(2, -1, 32))
    with hrm_kernels.use_backend(backend):
        for frozen in (False, True):
            with hrm_kernels.frozen_weights() if frozen else torch.enable_grad():
                got = layer(x, *rope_tables_2d(2, 3, 16, prefix=prefix))
                torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
                gradients = [torch.autograd.grad(y.sum(), layer.parameters(), retain_graph=True) for y in (got, want)]
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_frozen_rope2d_weights_notice_changes():
    layer = RoPEAttention(32, 2, rope2d=True)
    with torch.no_grad(), hrm_kernels.frozen_weights():
        one, again = layer.qkv_weight(torch.float32), layer.qkv_weight(torch.float32)
        assert one is again
        layer.qkv_proj.weight.mul_(2)
        assert torch.equal(layer.qkv_weight(torch.float32), 2 * one)


@pytest.mark.parametrize("family", [hrm.HRMConfig, hrm.TRMConfig])
def test_hrm_and_trm_take_2d_positions(family):
    values = {"seq_len": 6, "vocab_size": 7, "puzzle_emb_ndim": 32, "hidden_size": 32, "num_heads": 2}
    config = family.parse(values | {"pos_encodings": "rope2d", "board_height": 2, "forward_dtype": "float32"})
    cos, _ = config.rope_tables()
    assert config.board == (2, 3) and cos.shape == (config.positions, 16)
    assert (cos[: config.puzzle_emb_len + 1] == 1).all() and (cos[-1, 1:] < 1).all()
    assert type(config.model_copy()).parse(config.model_dump()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seq_len": 8}, "rope2d needs a board of seq_len 8 cells, got board_height None and board_width None"),
        ({"board_height": 2, "board_width": 3}, "needs a board of seq_len 9 cells, got board_height 2"),
        ({"hidden_size": 12}, "head_dim .* is 6; 2D RoPE needs a multiple of 4"),
        ({"mlp_t": True}, "pos_encodings rope2d needs attention"),
        ({"lambda_": 1.5}, "lambda_"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(values, message):
    with pytest.raises(hrm.InputError, match=message):
        hrm.EqRConfig.parse(SMALL | {"pos_encodings": "rope2d"} | values)


def test_a_trm_refuses_an_eqr_configuration():
    with pytest.raises(hrm.InputError, match="^TRM: config is EqRConfig, expected TRMConfig; .* EqRConfig an hrm.EqR"):
        hrm.TRM(hrm.EqRConfig.parse(SMALL))

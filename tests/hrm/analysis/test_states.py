import numpy as np
import pytest
import torch

from hrm import HRM, TRM, HRMConfig, TRMConfig
from hrm.analysis import (
    Baseline,
    Covariance,
    participation_ratio,
    principal_components,
    residual,
    state_updates,
    train_baseline,
    untrained,
)
from hrm.data.format import SetBuilder, open_dataset, write_dataset
from hrm.data.sudoku import Difficulty, generate

SIZES = {"seq_len": 16, "vocab_size": 6, "hidden_size": 32, "num_heads": 2, "expansion": 1, "forward_dtype": "float32"}


def model_of(family, **more):
    torch.manual_seed(0)
    if family is HRM:
        return HRM(HRMConfig(**(SIZES | more), H_layers=1, L_layers=2, H_cycles=2, L_cycles=3)).eval()
    return TRM(TRMConfig(**(SIZES | more), L_layers=1, H_cycles=2, L_cycles=3)).eval()


@pytest.fixture
def batch():
    inputs = generate(5, 4, np.random.default_rng(0)).inputs
    return {"inputs": torch.from_numpy(inputs).int(), "puzzle_identifiers": torch.zeros(5, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("family", "more"),
    [(HRM, {}), (HRM, {"pos_encodings": "learned"}), (TRM, {}), (TRM, {"mlp_t": True, "pos_encodings": "none"})],
)
def test_the_last_update_of_a_segment_is_the_models_carry(batch, family, more):
    # float64: 24 updates of a random model amplify rounding, in float32 to 2e-4 on either path
    model = model_of(family, forward_dtype="float64", **more)
    updates = list(state_updates(model, batch, 3))
    assert [one.level for one in updates] == list("LLLHLLLH" * 3)
    assert [one.segment for one in updates] == [1] * 8 + [2] * 8 + [3] * 8
    carry = model.initial_carry(batch)
    for segment in (1, 2, 3):
        with torch.no_grad():
            carry, _ = model(carry, batch)
        last = {one.level: one.after for one in updates if one.segment == segment}
        torch.testing.assert_close(last["H"], carry.z_H, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(last["L"], carry.z_L, rtol=1e-9, atol=1e-9)
    for level in "HL":  # each update starts from the previous one of its level
        of_level = [one for one in updates if one.level == level]
        assert all(a.after is b.before for a, b in zip(of_level, of_level[1:]))


def test_residual_is_relative_to_the_norm_of_a_state():
    before = torch.zeros(2, 3, 16)
    after = torch.zeros(2, 3, 16)
    after[0] = 1.0  # as long as an RMS-normed state, in half of the rows
    assert residual(before, after) == pytest.approx(0.5)


def test_covariance_of_parts_equals_numpys():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(4, 50, 6)) @ rng.normal(size=(6, 6)) + 3
    covariance = Covariance(6)
    for part in states:
        covariance.add(torch.from_numpy(part))
    expected = np.linalg.eigvalsh(np.cov(states.reshape(-1, 6).T, bias=True))[::-1]
    np.testing.assert_allclose(covariance.eigenvalues(), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="covariance of 0 states"):
        Covariance(6).eigenvalues()


def test_participation_ratio_counts_dimensions():
    assert participation_ratio(np.array([2.0, 2, 2, 0, 0])) == pytest.approx(3)
    assert participation_ratio(np.array([5.0, 0, 0])) == pytest.approx(1)
    assert participation_ratio(np.array([3.0, 1])) == pytest.approx(1.6)
    assert np.isnan(participation_ratio(np.zeros(3)))


def test_principal_components_recover_a_plane():
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(20, 2)))[0].T
    flat = rng.normal(size=(30, 2)) * [5, 1]
    points, variance = principal_components(flat @ axes + 7)
    assert variance.sum() == pytest.approx(1) and variance[0] > variance[1]
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    np.testing.assert_allclose(distances, np.linalg.norm(flat[:, None] - flat, axis=-1), atol=1e-9)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-9)


def test_untrained_has_new_weights_and_does_not_touch_the_global_generator():
    model = model_of(HRM)
    state = torch.random.get_rng_state()
    one, other = untrained(model, 1), untrained(model, 1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.config == model.config and not one.training
    weights = [x.inner.L_level.layers[0].mlp.down_proj.weight for x in (one, other, model)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", ["recurrent", "feed-forward"])
def test_baselines_learn_through_all_their_updates(tmp_path, batch, kind):
    puzzles, builder = generate(40, 4, np.random.default_rng(0), Difficulty(extra_clues=6)), SetBuilder()
    builder.add_puzzles(puzzles.inputs, puzzles.labels)
    write_dataset(tmp_path / "data", {"train": {"all": builder}}, vocab_size=6, seq_len=16, task="sudoku")
    torch.manual_seed(0)
    baseline = Baseline(model_of(HRM).config, 4, kind)
    states = list(baseline.states(batch))
    assert len(states) == 4 and len(baseline.levels) == (1 if kind == "recurrent" else 4)
    blocks = [level.layers[0].mlp.down_proj.weight for level in (*baseline.levels, baseline.inner.L_level)]
    assert len({block.sum().item() for block in blocks}) == len(blocks)  # no two have the same weights
    losses = []
    data = open_dataset(tmp_path / "data", "train")
    last = train_baseline(
        baseline, data, steps=60, batch_size=16, lr=3e-3, progress=lambda _, loss: losses.append(loss)
    )
    assert last < 0.8 * losses[0] and len(losses) == 60 and not baseline.training
    for level in baseline.levels:
        assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in level.parameters())

"""Damping that rises where a trajectory oscillates."""

import numpy as np
import pytest
import torch

import hrm
from hrm.inference.damping import LEAST, AdaptiveDamping, RowWeights
from hrm.inference.engine import Engine
from hrm_kernels.movement import move

CONFIG = hrm.HRMConfig(
    seq_len=4, vocab_size=5, hidden_size=16, num_heads=2, H_layers=1, L_layers=1, H_cycles=1, L_cycles=1,
    expansion=0.5, forward_dtype="float32",
)  # fmt: skip
PUZZLES = np.random.default_rng(0).integers(0, 5, (5, 4))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return hrm.HRM(CONFIG).eval()


def test_a_weight_falls_after_segments_without_progress():
    values = np.zeros(2, np.float32)
    weights = RowWeights(AdaptiveDamping(0.5, 2), values)
    seen = []
    for residual in (3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 1.0):
        weights.update(0, residual)
        seen.append(values[0].item())
    assert seen == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    for _ in range(40):
        weights.update(0, float("nan"))
    assert values.tolist() == [np.float32(LEAST), 1]
    weights.restart(0)
    weights.update(0, 9.0)
    weights.update(0, 9.0)
    assert values.tolist() == [1, 1]


def test_text_and_its_errors():
    assert AdaptiveDamping.of("0.9") == AdaptiveDamping(0.9, 5)
    assert AdaptiveDamping.of("0.99:3") == AdaptiveDamping.of(AdaptiveDamping(0.99, 3)) == AdaptiveDamping(0.99, 3)
    assert AdaptiveDamping.of(None) is None
    for text in ("much", "0.9:", "0.9:x", "0.9:2:1", ""):
        with pytest.raises(hrm.InputError, match="expected DECAY or DECAY:PATIENCE, such as 0.9:5"):
            AdaptiveDamping.of(text)
    for decay, patience in ((1.0, 5), (0.0, 5), (float("nan"), 5), (0.9, 0), (0.9, True), (0.9, 1.5)):
        with pytest.raises(hrm.InputError, match="of the damping is .*, expected"):
            AdaptiveDamping(decay, patience)


def test_a_trajectory_that_oscillates_comes_to_rest(model, monkeypatch):
    def turn_over(z_H, z_L, x, damping=None, weight=None):  # period 2 around its fixed point (x, 0)
        return move((z_H, z_L), (2 * x - z_H, -z_L), weight)

    monkeypatch.setattr(model.inner, "moved_segment", turn_over)
    with Engine(model, 3, 60, halt="residual:0.01") as engine:
        assert [one.steps for one in engine.solve(PUZZLES)] == [60] * 5
    with Engine(model, 3, 60, halt="residual:0.01", damping="0.5:3") as engine:
        assert all(5 < one.steps < 20 for one in engine.solve(PUZZLES))
    with Engine(model, 2, 60, halt="fixed", damping="0.5:3") as engine:
        (result,) = engine.solve(PUZZLES[:1], trace=True)
    residuals = [frame.residual for frame in result.trace]
    assert residuals[-1] < 1e-6 < 0.1 < residuals[0]


@pytest.mark.usefixtures("exact_rows")
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_damped_row_does_not_depend_on_its_neighbours(norm):
    """Also where some rows are damped and others are not."""
    torch.manual_seed(0)
    model, results = hrm.HRM(CONFIG.model_copy(update={"norm": norm})).eval(), []
    for slots in (1, 2, 5):
        with Engine(model, slots, 12, halt="fixed", damping=AdaptiveDamping(0.5, 1)) as engine:
            traces = [one.trace for one in engine.solve(PUZZLES, trace=True)]
        results.append([[(frame.q_halt, frame.residual) for frame in trace] for trace in traces])
    assert results[0] == results[1] == results[2]


def test_weights_by_hand(model):
    with Engine(model, 2, 6, halt="fixed", damping="0.5:1", backend="reference") as engine:
        (result,) = engine.solve(PUZZLES[:1], trace=True)
    batch = {"inputs": torch.from_numpy(PUZZLES[:1]), "puzzle_identifiers": torch.zeros(1, dtype=torch.int64)}
    carry, values = model.initial_carry(batch), np.zeros(1, np.float32)
    weights = RowWeights(AdaptiveDamping(0.5, 1), values)
    for frame in result.trace:
        with torch.no_grad():
            plain, _ = model(carry, batch)
            damped, outputs = model(carry, batch, weight=torch.from_numpy(values.copy()))
        if not carry.halted.any():
            want = carry.z_H + values[0].item() * (plain.z_H - carry.z_H)
            torch.testing.assert_close(damped.z_H, want, rtol=1e-5, atol=1e-6)
        assert frame.q_halt == pytest.approx(outputs["q_halt_logits"].item(), rel=1e-4, abs=1e-5)
        weights.update(0, frame.residual)
        carry = damped
        carry.halted[:] = False
    with pytest.raises(hrm.InputError, match="call the model under torch.no_grad"):
        model(carry, batch, weight=torch.ones(1))
    with torch.no_grad(), pytest.raises(TypeError, match=r"weight is torch.float64, expected float32 \[B\]"):
        model(carry, batch, weight=torch.ones(1, dtype=torch.float64))
    with torch.no_grad(), pytest.raises(ValueError, match=r"weight has shape \[2\].*expected \[B\] = \[1\]"):
        model(carry, batch, weight=torch.ones(2))

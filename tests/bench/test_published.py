"""The eager computation of the benchmarks equals the model's, and has the counted operations."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import models, published
from bench.counts import Model
from bench.sizes import Size
from hrm.config import HRMConfig
from hrm.model import HRM
from hrm_kernels.backends import use_backend
from hrm_kernels.optim import AdamATan2, SparseSignSGD


def small(**options):
    values = {"seq_len": 9, "vocab_size": 7, "num_puzzle_identifiers": 5, "puzzle_emb_ndim": 32, "hidden_size": 64}
    values |= {"num_heads": 2, "expansion": 1.0, "H_layers": 1, "L_layers": 2, "forward_dtype": "float32"}
    torch.manual_seed(0)
    model = HRM(HRMConfig(**values | options))
    torch.nn.init.normal_(model.inner.q_head.weight)
    torch.nn.init.normal_(model.inner.puzzle_emb.weights)
    batch = {
        "inputs": torch.randint(0, 7, (3, 9)),
        "labels": torch.randint(0, 7, (3, 9)),
        "puzzle_identifiers": torch.tensor([1, 4, 1]),
    }
    return model, batch


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_outputs_of_two_training_calls(positions):
    model, batch = small(pos_encodings=positions)
    model.train()
    carries = [model.initial_carry(batch)] * 2
    for _ in range(2):
        runs = []
        for index, call in enumerate((published.forward, HRM.__call__)):
            torch.manual_seed(1)  # of the exploration
            with use_backend("reference"):
                carries[index], outputs = call(model, carries[index], batch)
            runs.append((carries[index], outputs))
        (carry, outputs), (want_carry, want) = runs
        assert outputs.keys() == want.keys() and "target_q_continue" in want
        for name in want:
            torch.testing.assert_close(outputs[name], want[name], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(carry.z_H, want_carry.z_H, rtol=1e-5, atol=2e-5)
        assert torch.equal(carry.halted, want_carry.halted) and torch.equal(carry.steps, want_carry.steps)


def test_loss_and_gradients_of_a_step():
    runs = []
    for step in (models.eager_training_step, models.training_step):
        model, batch = small()
        model.train()
        optimizers = [AdamATan2(model.parameters(), lr=1e-3), SparseSignSGD([model.puzzle_emb], lr=1e-3)]
        torch.manual_seed(1)
        results = step(model, optimizers, {"carry": model.initial_carry(batch), "batch": batch})
        runs.append((results, model.state_dict()))
    (results, weights), (want, want_weights) = runs
    assert len(results) == len(want) == 1 + len(list(model.parameters()))
    for one, other in zip(results, want):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(want_weights["inner.puzzle_emb.weights"], small()[0].inner.puzzle_emb.weights)
    moved = (weights["inner.puzzle_emb.weights"] - want_weights["inner.puzzle_emb.weights"]).abs().max()
    assert moved < 1e-5


def test_in_float64_nothing_is_rounded_to_float32():
    model, batch = small()
    carry, outputs = published.forward(
        published.in_float64(model), published.carry_in_float64(model.initial_carry(batch)), batch
    )
    assert {outputs[name].dtype for name in outputs} == {carry.z_H.dtype} == {torch.float64}
    rounded = outputs["logits"] - outputs["logits"].float().double()
    assert rounded.abs().max() > 0


def test_counted_operations_are_those_of_the_published_computation():
    size = Size(1, 82)
    model, _, state = models.training_arguments(*models.published_model(size, "cpu", torch.float32))
    # the counter does not know the fused attention of CPUs
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        published.forward(model.eval(), state["carry"], state["batch"])
    heads = 2 * 512 * (81 * 11 + 2)
    assert counter.get_total_flops() == size.segment_passes * size.block_operations + heads
    counted = Model(HRMConfig(seq_len=81, vocab_size=11, puzzle_emb_ndim=512))
    assert counted.segment_passes == size.segment_passes and counted.training_passes == size.training_passes
    assert counted.size.block_operations == size.block_operations
    assert counted.size.block_weights == size.block_weights
    assert counted.weights == sum(p.numel() for p in model.parameters()) == 27_275_266

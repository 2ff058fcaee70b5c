"""The model beyond the golden numbers: options, refill, halting, checks of its input, repr."""

import numpy as np
import pytest
import torch

import hrm
from hrm import act


def config(**changes):
    values = {"seq_len": 6, "vocab_size": 7, "num_puzzle_identifiers": 4, "puzzle_emb_ndim": 32, "hidden_size": 32}
    values |= {"H_layers": 1, "L_layers": 1, "num_heads": 2, "expansion": 1.0, "forward_dtype": "float32"}
    values |= {"halt_max_steps": 4, "halt_exploration_prob": 0.0}
    return hrm.HRMConfig.parse(values | changes)


def make_batch(rows=5, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    settings = config(**changes)
    return {
        "inputs": torch.randint(
            1, settings.vocab_size, (rows, settings.seq_len), generator=generator, dtype=torch.int32
        ),
        "labels": torch.randint(
            1, settings.vocab_size, (rows, settings.seq_len), generator=generator, dtype=torch.int32
        ),
        "puzzle_identifiers": torch.randint(0, 4, (rows,), generator=generator, dtype=torch.int32),
    }


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = hrm.HRM(config(**changes))
    torch.nn.init.normal_(model.inner.q_head.weight, std=0.2)
    torch.nn.init.zeros_(model.inner.q_head.bias)
    if model.puzzle_emb:
        torch.nn.init.normal_(model.puzzle_emb.weights)
    return model


OPTIONS = [{}, {"pos_encodings": "learned"}, {"puzzle_emb_ndim": 0}, {"puzzle_emb_ndim": 40}, {"puzzle_emb_ndim": 8}]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_train_every_parameter(options, dtype):
    model, batch = make_model(forward_dtype=dtype, **options).train(), make_batch()
    carry, outputs = model(model.initial_carry(batch), batch)
    prefix = -(-options.get("puzzle_emb_ndim", 32) // 32)
    assert carry.z_H.shape == (5, prefix + 6, 32) and carry.z_H.dtype == model.config.dtype
    assert outputs["logits"].shape == (5, 6, 7) and outputs["q_halt_logits"].dtype == torch.float32
    loss, _ = hrm.act_loss(carry, outputs)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())
    if model.puzzle_emb:
        assert model.puzzle_emb.local_weights.grad.abs().sum() > 0


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore:.* runs on backend 'reference'")
def test_float32_is_close_to_float64(options):
    model, batch = make_model(**options).eval(), make_batch()
    wide = hrm.HRM(model.config.model_copy(update={"forward_dtype": "float64"})).double().eval()
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        carry, outputs = model(model.initial_carry(batch), batch)
        exact_carry, exact = wide(wide.initial_carry(batch), batch)
    assert exact_carry.z_H.dtype == exact["logits"].dtype == torch.float64
    errors = [
        (carry.z_H - exact_carry.z_H).abs().max().item(),
        (outputs["logits"] - exact["logits"]).abs().max().item(),
    ]
    assert 0 < max(errors) < 2e-5


def test_puzzle_embedding_is_padded_and_comes_first():
    model, batch = make_model(puzzle_emb_ndim=40), make_batch()
    x = model.eval().inner.embed(batch)
    rows = model.puzzle_emb.weights[batch["puzzle_identifiers"]]
    torch.testing.assert_close(x[:, 0], 32**0.5 * rows[:, :32])
    torch.testing.assert_close(x[:, 1, :8], 32**0.5 * rows[:, 32:])
    assert x[:, 1, 8:].eq(0).all()
    torch.testing.assert_close(x[:, 2:], 32**0.5 * model.inner.embed_tokens.embedding_weight[batch["inputs"].long()])


def test_only_rows_that_have_halted_are_refilled():
    model, first, second = make_model().eval(), make_batch(seed=1), make_batch(seed=2)
    with torch.no_grad():
        carry, _ = model(model.initial_carry(first), first)
        carry.halted = torch.tensor([True, False, False, True, False])
        carry, outputs = model(carry, second)
        fresh, fresh_outputs = model(model.initial_carry(second), second)
    refilled = torch.tensor([True, False, False, True, False])
    assert torch.equal(carry.current_data["inputs"][refilled], second["inputs"][refilled])
    assert torch.equal(carry.current_data["inputs"][~refilled], first["inputs"][~refilled])
    assert carry.steps.tolist() == [1, 2, 2, 1, 2]
    torch.testing.assert_close(outputs["logits"][refilled], fresh_outputs["logits"][refilled])
    torch.testing.assert_close(carry.z_L[refilled], fresh.z_L[refilled])


def test_evaluation_halts_only_after_the_last_step():
    model, batch = make_model().eval(), make_batch()
    carry = model.initial_carry(batch)
    with torch.no_grad():
        halted = [(carry := model(carry, batch)[0]).halted.tolist() for _ in range(5)]
    assert halted == [[False] * 5] * 3 + [[True] * 5] + [[False] * 5]


def test_target_q_continue_is_the_q_value_after_one_more_segment():
    model, batch = make_model().train(), make_batch()
    carry, outputs = model(model.initial_carry(batch), batch)
    with torch.no_grad():
        x = model.inner.embed(batch)
        q_halt, q_continue = model.inner.q_values(model.inner.segment(carry.z_H, carry.z_L, x)[0])
    want = torch.sigmoid(torch.maximum(q_halt, q_continue))
    torch.testing.assert_close(outputs["target_q_continue"], want)
    assert not outputs["target_q_continue"].requires_grad


def test_halting_rule():
    steps, min_steps = torch.tensor([1, 2, 3, 4, 2]), torch.tensor([0, 0, 4, 4, 3])
    q_halt, q_continue = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), torch.zeros(5)
    assert act.halts(steps, q_halt, q_continue, 4, min_steps).tolist() == [True, False, False, True, False]
    assert act.halts(torch.ones(1), torch.ones(1) * -9, torch.zeros(1), 1, torch.zeros(1)).tolist() == [True]


def test_halting_is_preferred_if_its_q_value_is_higher():
    q_halt, q_continue, want = [1.0, 0.0, -1.0, float("nan")], [0.0, 0.0, 0.0, 0.0], [True, False, False, False]
    assert act.prefers_halting(torch.tensor(q_halt), torch.tensor(q_continue)).tolist() == want
    assert act.prefers_halting(np.array(q_halt), np.array(q_continue)).tolist() == want
    assert [act.prefers_halting(*pair) for pair in zip(q_halt, q_continue, strict=True)] == want


def test_target_q_continue_rule():
    steps, q_halt, q_continue = torch.tensor([1, 1, 4]), torch.tensor([-1.0, 2.0, -1.0]), torch.tensor([0.5, 0.5, 0.5])
    want = torch.sigmoid(torch.tensor([0.5, 2.0, -1.0]))
    torch.testing.assert_close(act.target_q_continue(steps, q_halt, q_continue, 4), want)


def test_exploration_draws_2_to_halt_max_steps_with_its_probability():
    drawn = act.draw_min_steps(200_000, 5, 0.3, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.long(), minlength=6) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0, 0.075, 0.075, 0.075, 0.075]), atol=3e-3, rtol=0)
    assert act.draw_min_steps(1000, 8, 0.0).eq(0).all()


def test_a_row_runs_at_least_min_steps():
    model, batch = make_model().train(), make_batch()
    with torch.no_grad():
        model.inner.q_head.bias.copy_(torch.tensor([50.0, -50.0]))  # every row prefers to halt
    carry, _ = model(model.initial_carry(batch), batch, min_steps=torch.tensor([0, 2, 0, 4, 0], dtype=torch.int32))
    assert carry.halted.tolist() == [True, False, True, False, True]


def test_memory_for_the_gradient_does_not_grow_with_cycles():
    def saved(cycles):
        model, batch = make_model(H_cycles=cycles, L_cycles=cycles).train(), make_batch()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(model.initial_carry(batch), batch)
        return sum(sizes)

    assert saved(1) == saved(4)


def test_rows_do_not_influence_each_other():
    model, batch = make_model().eval(), make_batch(rows=5)
    with torch.no_grad():
        together = model(model.initial_carry(batch), batch)[1]["logits"]
        part = {name: values[2:3] for name, values in batch.items()}
        single = model(model.initial_carry(part), part)[1]["logits"]
    torch.testing.assert_close(single, together[2:3], rtol=1e-5, atol=1e-5)


def test_model_compiles_without_graph_breaks():
    torch._dynamo.reset()
    model, batch = make_model().eval(), make_batch()
    carry = model.initial_carry(batch)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(3):
            got, want = compiled(carry, batch), model(carry, batch)
            torch.testing.assert_close(got[1]["logits"], want[1]["logits"], rtol=1e-5, atol=1e-5)
            carry = want[0]


def test_rows_without_labels_count_only_for_the_halting_loss():
    model, batch = make_model(halt_max_steps=1).train(), make_batch()
    batch["labels"][3:] = -100
    carry, outputs = model(model.initial_carry(batch), batch)
    outputs["logits"] = torch.nn.functional.one_hot(batch["labels"].clamp(min=0).long(), 7).float() * 9
    outputs["q_halt_logits"] = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    loss, metrics = hrm.act_loss(carry, outputs, "softmax_cross_entropy")
    want = {"count": 3, "accuracy": 3, "exact_accuracy": 3, "q_halt_accuracy": 2, "steps": 3}
    assert {name: metrics[name].item() for name in want} == want
    token = torch.log(1 + 6 * torch.exp(torch.tensor(-9.0)))
    torch.testing.assert_close(metrics["lm_loss"], 3 * token, rtol=1e-4, atol=0)
    sigmoid_loss = 4 * torch.log(1 + torch.exp(torch.tensor(-1.0))) + torch.log(1 + torch.exp(torch.tensor(1.0)))
    torch.testing.assert_close(loss, 3 * token + 0.5 * sigmoid_loss, rtol=1e-4, atol=0)


MISFITS = {
    "heads": ({"num_heads": 3}, "hidden_size 32 is not a multiple of num_heads 3"),
    "odd heads": ({"hidden_size": 6, "num_heads": 2}, "head_dim .* is 3; RoPE"),
    "unknown": ({"hiden_size": 5}, "hiden_size: unknown key"),
    "range": ({"halt_exploration_prob": 2}, "halt_exploration_prob: .* less than or equal to 1 .got 2."),
    "positions": ({"pos_encodings": "alibi"}, "pos_encodings: Input should be 'rope', 'rope2d' or 'learned'"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_configuration_that_does_not_fit_is_named(misfit):
    changes, message = MISFITS[misfit]
    with pytest.raises(hrm.InputError, match=message):
        config(**changes)


def test_batch_that_does_not_fit():
    model, batch = make_model(), make_batch()
    with pytest.raises(hrm.InputError, match=r"inputs has shape \[5, 5\], expected \[B, seq_len\] = \[any, 6\]"):
        model(model.initial_carry(batch), batch | {"inputs": batch["inputs"][:, :5]})
    with pytest.raises(hrm.InputError, match="the batch has inputs, labels, expected"):
        model(model.initial_carry(batch), {name: batch[name] for name in ("inputs", "labels")})
    with pytest.raises(hrm.InputError, match="the batch has labels, expected 'inputs' and 'puzzle_identifiers'"):
        model.initial_carry({"labels": batch["labels"]})


INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("loss_type", ["stablemax_cross_entropy", "softmax_cross_entropy"])
def test_a_batch_of_any_integers_computes_the_same(dtype, loss_type):
    """Our data folders hold uint8 and int32; other files also hold int16 and unsigned integers."""
    model, batch = make_model(halt_max_steps=2).train(), make_batch()
    other = {name: values.to(getattr(torch, dtype)) for name, values in batch.items()}

    def run(first, second):
        torch.manual_seed(0)
        carry, _ = model(model.initial_carry(first), first)
        carry, outputs = model(carry, second)
        loss, metrics = hrm.act_loss(carry, outputs, loss_type)
        loss.backward()
        return [carry.z_H, *outputs.values(), loss.detach(), *metrics.values(), model.puzzle_emb.local_weights.grad]

    want = run(batch, batch)
    for first, second in ((other, other), (other, batch)):
        assert all(map(torch.equal, run(first, second), want))
    carry, outputs = model(model.initial_carry(batch), batch)
    carry.current_data["labels"] = other["labels"]
    assert torch.equal(hrm.act_loss(carry, outputs)[0], hrm.act_loss(*model(model.initial_carry(batch), batch))[0])


def test_a_batch_of_other_values_than_integers():
    model, batch = make_model(), make_batch()
    for name in batch:
        for wrong, dtype in ((batch[name].float(), "torch.float32"), (batch[name].bool(), "torch.bool")):
            message = f"^HRM: {name} is {dtype}, expected integers of any dtype; convert it, as with .long"
            with pytest.raises(hrm.InputError, match=message):
                model(model.initial_carry(batch), batch | {name: wrong})
        with pytest.raises(hrm.InputError, match=f"^HRM: {name} is ndarray, expected a tensor of integers"):
            model.initial_carry(batch | {name: batch[name].numpy()})
    carry, outputs = model(model.initial_carry(batch), batch)
    carry.current_data["labels"] = batch["labels"].float()
    with pytest.raises(hrm.InputError, match="^act_loss: labels is torch.float32, expected integers"):
        hrm.act_loss(carry, outputs)


@pytest.mark.parametrize("token", [7, -1, 200])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_tokens_out_of_range_on_a_cpu_are_named(token, dtype):
    model = make_model()
    for name, expected in (("inputs", 6), ("puzzle_identifiers", 3)):
        batch = {key: values.to(dtype) for key, values in make_batch().items()}
        batch[name].flatten()[-1] = token
        with pytest.raises(hrm.InputError, match=f"^HRM: {name} holds {token}, expected 0 to {expected}; the data and"):
            model(model.initial_carry(batch), batch)


def test_carry_that_does_not_fit_the_batch():
    model, batch = make_model(), make_batch()
    with pytest.raises(hrm.InputError, match="^HRM: the batch has 3 rows and the carry 5; .* model.initial_carry"):
        model(model.initial_carry(batch), {name: values[:3] for name, values in batch.items()})
    unlabelled = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
    carry = model.initial_carry(unlabelled)
    message = "has 'labels', which the carry lacks .it has inputs, puzzle_identifiers.; pass"
    with pytest.raises(hrm.InputError, match=message):
        model(carry, batch)
    with pytest.raises(hrm.InputError, match="^act_loss: .* has inputs, puzzle_identifiers, expected 'labels' too; "):
        hrm.act_loss(*model(carry, unlabelled))


def test_a_model_of_another_familys_configuration():
    tiny = hrm.TRMConfig(seq_len=6, vocab_size=7, hidden_size=32, num_heads=2)
    with pytest.raises(hrm.InputError, match="^HRM: config is TRMConfig, expected HRMConfig; .* a TRMConfig an hrm.TR"):
        hrm.HRM(tiny)
    with pytest.raises(
        hrm.InputError, match="^TRM: config is HRMConfig, expected TRMConfig; an HRMConfig makes an hrm"
    ):
        hrm.TRM(config())
    with pytest.raises(hrm.InputError, match="^HRM: config is dict, .* HRMConfig.parse reads plain values$"):
        hrm.HRM({"seq_len": 6})
    with pytest.raises(hrm.InputError, match="^config is dict, expected one of HRMConfig, TRMConfig, EqRCon"):
        hrm.from_published({}, {"seq_len": 6})


def test_repr_of_a_model_is_one_line_of_sizes():
    model = make_model()
    assert repr(model) == (
        "HRM(57.9K parameters, hidden 32, 1+1 layers, 2x2 cycles, 6 tokens, vocabulary 7, "
        "4 puzzle identifiers, float32)"
    )
    tiny = hrm.TRM(hrm.TRMConfig(seq_len=6, vocab_size=7, hidden_size=32, mlp_t=True, pos_encodings="none"))
    assert "2 mixing layers, 3x6 cycles, 6 tokens, vocabulary 7, bfloat16)" in repr(tiny)
    with torch.device("meta"):
        published = hrm.HRM(hrm.HRMConfig(seq_len=81, vocab_size=11))
    assert repr(published).startswith("HRM(27.3M parameters, hidden 512, 4+4 layers, 2x2 cycles, 81 tokens, ")
    assert "(H_level): ReasoningModule" in repr(model.inner), "the tree of modules"


def test_repr_of_a_configuration_has_the_values_that_differ_from_the_defaults():
    changed = hrm.HRMConfig(seq_len=6, vocab_size=7, gradient=3)
    assert repr(changed) == "HRMConfig(seq_len=6, vocab_size=7, gradient=3)"
    names = {"HRMConfig": hrm.HRMConfig, "TRMConfig": hrm.TRMConfig}
    for one in (changed, config(), hrm.TRMConfig(seq_len=6, vocab_size=7, puzzle_emb_ndim=512)):
        assert eval(repr(one), names) == one


def test_repr_of_a_carry_has_shapes_and_not_the_states():
    model, batch = make_model(), make_batch()
    assert repr(model.initial_carry(batch)) == (
        "Carry(5 rows, 5 halted, steps [0, 0, 0, 0, 0], states [5, 7, 32] float32 on cpu, "
        "data: inputs, labels, puzzle_identifiers)"
    )
    with torch.device("meta"):
        on_meta = hrm.Carry(torch.zeros(5, 7, 32), torch.zeros(5, 7, 32), torch.zeros(5), torch.zeros(5), {})
    assert repr(on_meta) == "Carry(5 rows, states [5, 7, 32] float32 on meta, data: nothing)"

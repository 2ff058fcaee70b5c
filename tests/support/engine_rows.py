"""A tiny model, its rows computed without an engine, and comparisons of an engine's results with them."""

import numpy as np
import torch

from hrm import HRM, TRM, HRMConfig, TRMConfig
from hrm_kernels import explain
from hrm_kernels.backends import independent_rows

STEPS = 6
SIZES = {"seq_len": 16, "vocab_size": 6, "hidden_size": 32, "num_heads": 2, "expansion": 1, "forward_dtype": "float32"}


def tiny(family=HRM, **more):
    """A model whose puzzles halt at different segments."""
    torch.manual_seed(0)
    common = {**SIZES, "num_puzzle_identifiers": 3, "puzzle_emb_ndim": 32, "halt_max_steps": 4, **more}
    if family is HRM:
        model = HRM(HRMConfig(**common, H_layers=1, L_layers=1))
    else:
        model = TRM(TRMConfig(**common, puzzle_emb_len=1, L_layers=1))
    with torch.no_grad():  # makes puzzles differ, and halt at different segments
        model.inner.q_head.weight.normal_()
        model.inner.q_head.bias.copy_(torch.tensor([0.0, 1.5 if family is HRM else 0.0]))
        model.inner.puzzle_emb.weights.normal_()
    return model.eval()


def run_alone(model, puzzle, slots=1, steps=STEPS):
    """The model's tokens and Q values after each segment, with the puzzle in every row of a batch of ``slots``."""
    batch = {
        "inputs": torch.from_numpy(np.tile(puzzle.inputs, (slots, 1))).int(),
        "puzzle_identifiers": torch.full((slots,), puzzle.identifier, dtype=torch.int32),
    }
    carry, frames = model.initial_carry(batch), []
    for _ in range(steps):
        with torch.no_grad(), independent_rows():
            carry, outputs = model(carry, batch)
        carry.halted[:] = False  # more segments than in training
        q = (outputs["q_halt_logits"][0].item(), outputs["q_continue_logits"][0].item())
        frames.append((outputs["logits"][0].argmax(-1).numpy(), *q))
    return frames


def assert_bits(result, frames):
    """Steps, tokens and Q values equal those of ``frames`` exactly."""
    assert result.error is None and result.steps == len(frames)
    np.testing.assert_array_equal(result.tokens, frames[-1][0])
    assert (result.q_halt, result.q_continue) == frames[-1][1:]


def rows_are_exact():
    """Whether a row's bits are independent of other rows: on the cpu backend."""
    with independent_rows():
        return explain("linear", torch.zeros(1, 4), torch.zeros(2, 4)) == "cpu"


def assert_matches(result, frames):
    """Equal to the bit on the cpu backend, whose rows are independent; close on the reference backend."""
    if rows_are_exact():
        assert_bits(result, frames)
        return
    assert result.error is None and result.steps == len(frames)
    np.testing.assert_array_equal(result.tokens, frames[-1][0])
    np.testing.assert_allclose((result.q_halt, result.q_continue), frames[-1][1:], rtol=1e-4, atol=1e-4)


def until_halting(frames, rule=lambda frames, i: frames[i][1] > frames[i][2]):
    """``frames`` up to the first one where ``rule`` holds."""
    return frames[: next((i + 1 for i in range(len(frames)) if rule(frames, i)), len(frames))]

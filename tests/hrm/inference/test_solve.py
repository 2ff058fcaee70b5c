import math

import numpy as np
import pytest
import torch
from torch import nn

from hrm import HRM, HRMConfig, InputError
from hrm.data.sudoku import Sudoku, generate
from hrm.inference.solve import solve
from hrm.model import Carry

TASK = Sudoku(4)


class Scripted(nn.Module):
    """A row's first token selects a script: the answer and ``q_halt`` after each segment; q_continue is 0."""

    folder = None

    def __init__(self, q_halt, answers, max_steps):
        super().__init__()
        self.config = HRMConfig(seq_len=16, vocab_size=6, halt_max_steps=max_steps)
        self.q_halt, self.answers, self.calls = q_halt, answers, 0
        self.weight = nn.Parameter(torch.zeros(1))

    def initial_carry(self, batch):
        rows = len(batch["inputs"])
        empty = torch.zeros(rows)
        return Carry(empty, empty, torch.zeros(rows, dtype=torch.int32), torch.ones(rows, dtype=torch.bool), batch)

    def forward(self, carry, batch):
        assert not self.training
        self.calls += 1
        steps = torch.where(carry.halted, 0, carry.steps) + 1
        rows = batch["inputs"][:, 0].long() - 1
        q_halt = torch.tensor([self.q_halt[row][step - 1] for row, step in zip(rows, steps)])
        tokens = torch.tensor(np.stack([self.answers[row][step - 1] for row, step in zip(rows, steps)])).long()
        outputs = {
            "logits": nn.functional.one_hot(tokens, 6).float(),
            "q_halt_logits": q_halt,
            "q_continue_logits": torch.zeros_like(q_halt),
        }
        return Carry(carry.z_H, carry.z_L, steps, steps >= self.config.halt_max_steps, batch), outputs


@pytest.fixture
def scripted():
    puzzles = np.ones((3, 16), np.uint8)
    puzzles[:, 0] = [1, 2, 3]  # blank, digit 1, digit 2
    random = np.random.default_rng(0)
    answers = random.integers(2, 6, (3, 5, 16))
    # Row 0 halts after segment 3, though q_halt rises later; row 1 at once; row 2 never: equal values do not halt.
    q_halt = [[-1.0, -1.0, 0.5, 9.0, -9.0], [2.0, -1.0, -1.0, -1.0, -1.0], [-1.0, 0.0, -1.0, -2.0, -3.0]]
    return puzzles, answers, q_halt


def test_halting_by_q(scripted):
    puzzles, answers, q_halt = scripted
    model = Scripted(q_halt, answers, max_steps=4).train()
    solutions = solve(model, TASK, puzzles)
    assert [one.steps for one in solutions] == [3, 1, 4]
    assert [one.q_halt for one in solutions] == [0.5, 2.0, -2.0]
    assert [one.q_continue for one in solutions] == [0.0, 0.0, 0.0]
    for row, one in enumerate(solutions):
        np.testing.assert_array_equal(one.inputs, puzzles[row])
        np.testing.assert_array_equal([frame.tokens for frame in one.frames], answers[row, : one.steps])
        np.testing.assert_array_equal(one.answer, answers[row, one.steps - 1])
        assert [frame.step for frame in one.frames] == list(range(1, one.steps + 1))
        assert one.reason == TASK.check(puzzles[row], one.answer) is not None
    assert solutions[0].confidence == pytest.approx(1 / (1 + math.exp(-0.5)))
    np.testing.assert_array_equal(solutions[0].changed(0), answers[0, 0] != puzzles[0])
    np.testing.assert_array_equal(solutions[0].changed(2), answers[0, 2] != answers[0, 1])
    assert model.training


def test_the_batch_ends_when_all_its_rows_have_halted(scripted):
    puzzles, answers, q_halt = scripted
    model = Scripted(q_halt, answers, max_steps=4)
    solve(model, TASK, puzzles[:2])
    assert model.calls == 3
    model.calls = 0
    assert [one.steps for one in solve(model, TASK, puzzles[:2], batch_size=1)] == [3, 1]
    assert model.calls == 4


def test_fixed_halting_and_more_segments_than_in_training(scripted):
    puzzles, answers, q_halt = scripted
    solutions = solve(Scripted(q_halt, answers, max_steps=2), TASK, puzzles, halt="fixed", max_steps=5)
    assert [one.steps for one in solutions] == [5, 5, 5]
    np.testing.assert_array_equal([one.answer for one in solutions], answers[:, 4])


def test_valid_and_invalid_answers():
    puzzle = generate(1, 4, np.random.default_rng(0))
    inputs = puzzle.inputs.copy()
    row = inputs[0, 0] - 1
    answers, q_halt = np.zeros((6, 1, 16), int), [[1.0]] * 6
    answers[row, 0] = puzzle.labels[0]
    (solution,) = solve(Scripted(q_halt, answers, max_steps=1), TASK, inputs)
    assert solution.valid and solution.reason is None
    answers[row, 0, 0] = 1
    (solution,) = solve(Scripted(q_halt, answers, max_steps=1), TASK, inputs)
    assert not solution.valid and solution.reason == "row 1 column 1 is not a digit 1 to 4"


def tiny():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1, "halt_max_steps": 6}
    model = HRM(
        HRMConfig(
            seq_len=16, vocab_size=6, num_puzzle_identifiers=3, puzzle_emb_ndim=32, forward_dtype="float32", **sizes
        )
    )
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
        model.inner.q_head.bias.copy_(torch.tensor([0.0, 1.5]))
        model.inner.puzzle_emb.weights.normal_()
    return model


def test_answers_do_not_depend_on_the_rest_of_the_batch():
    puzzles = generate(24, 4, np.random.default_rng(1)).inputs
    identifiers = np.arange(24) % 3
    together = solve(tiny(), TASK, puzzles, puzzle_identifiers=identifiers)
    assert len({one.steps for one in together}) > 2
    for batch_size in (1, 7):
        for one, other in zip(
            together, solve(tiny(), TASK, puzzles, puzzle_identifiers=identifiers, batch_size=batch_size)
        ):
            assert one.steps == other.steps
            np.testing.assert_array_equal([f.tokens for f in one.frames], [f.tokens for f in other.frames])
            assert one.q_halt == pytest.approx(other.q_halt, rel=1e-4, abs=1e-5)
    blank = solve(tiny(), TASK, puzzles)
    np.testing.assert_array_equal(blank[3].answer, together[3].answer)  # identifier 0
    assert any((one.answer != other.answer).any() for one, other in zip(blank, together))


def test_frames_are_the_answers_of_the_model():
    puzzles = generate(3, 4, np.random.default_rng(2)).inputs
    model = tiny().eval()
    batch = {"inputs": torch.from_numpy(puzzles).int(), "puzzle_identifiers": torch.zeros(3, dtype=torch.int32)}
    carry = model.initial_carry(batch)
    solutions = solve(model, TASK, puzzles, halt="fixed")
    for step in range(6):
        with torch.no_grad():
            carry, outputs = model(carry, batch)
        np.testing.assert_array_equal([one.frames[step].tokens for one in solutions], outputs["logits"].argmax(-1))
        q = [one.frames[step].q_continue for one in solutions]
        np.testing.assert_allclose(q, outputs["q_continue_logits"], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"puzzles": np.ones((2, 15), int)},
            r"puzzles is int64 of shape \[2, 15\], expected integers \[n, seq_len\] = \[n, 16\]",
        ),
        ({"puzzles": np.full((2, 16), 6)}, "a puzzle holds token 6, expected 0 to 5"),
        ({"puzzle_identifiers": np.array([0, 3])}, "puzzle identifier 3 is not among the model's 3; expected 0 to 2"),
        ({"puzzle_identifiers": np.array([0])}, "one for each of 2 puzzles"),
        (
            {"puzzle_identifiers": [0, 1.7]},
            r"puzzle_identifiers is float64 of shape \[2\], expected integers \[n\] = \[2\]",
        ),
        ({"puzzle_identifiers": 1}, r"puzzle_identifiers is int64 of shape \[\], expected integers"),
        ({"puzzles": [[1, 2], [3]]}, "puzzles is not an array .*inhomogeneous.*, expected integers"),
        ({"puzzles": 3}, r"puzzles is int64 of shape \[\], expected integers"),
        ({"puzzles": np.ones((2, 16), "m8[s]")}, r"puzzles is timedelta64\[s\] of shape \[2, 16\], expected integers"),
        ({"task": Sudoku(9)}, "vocab_size 11 and seq_len 81, the model 6 and 16"),
        ({"max_steps": 0}, "max_steps is 0, expected 1 or more"),
        ({"halt": "never"}, "halt is 'never', expected 'q', 'fixed', 'stable:K'"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(InputError, match=message):
        solve(tiny(), **{"task": TASK, "puzzles": np.ones((2, 16), int), **arguments})


def test_no_puzzles():
    assert solve(tiny(), TASK, np.zeros((0, 16), np.uint8)) == []

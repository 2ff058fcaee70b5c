"""A model that waits for the test before each segment."""

import threading
import time

import numpy as np
import pytest
import torch
from engine_rows import rows_are_exact

from hrm import HRMConfig
from hrm.data.sudoku import generate
from hrm.inference.engine import Puzzle
from hrm.model import Carry

SIZES = {"seq_len": 16, "vocab_size": 6, "hidden_size": 32, "num_heads": 2, "expansion": 1, "forward_dtype": "float32"}


class Gate(torch.nn.Module):
    """Waits for a permit before each segment; answers with the puzzle, which never halts before the last segment.

    Attributes:
        permits: a semaphore that the test releases, once for each segment.
        entered: a semaphore that the model releases when a segment waits.
        calls: number of segments so far.
        served: for each of them the first token of row 0.
    """

    folder = None

    def __init__(self, permits=0, fails_at=None):
        super().__init__()
        self.config = HRMConfig(**SIZES)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.permits, self.entered = threading.Semaphore(permits), threading.Semaphore(0)
        self.fails_at, self.calls, self.served = fails_at, 0, []

    def initial_carry(self, batch):
        rows = len(batch["inputs"])
        nothing = torch.zeros(rows)
        return Carry(nothing, nothing, nothing.int(), torch.ones(rows, dtype=torch.bool), batch)

    def forward(self, carry, batch):
        self.entered.release()
        assert self.permits.acquire(timeout=60)
        self.calls += 1
        self.served.append(batch["inputs"][0, 0].item())
        if self.calls == self.fails_at:
            raise ZeroDivisionError("the model is broken")
        logits = torch.nn.functional.one_hot(batch["inputs"].long(), 6).float()
        q = torch.zeros(len(logits))
        return carry, {"logits": logits, "q_halt_logits": q, "q_continue_logits": q}


@pytest.fixture
def gate():
    """The class Gate."""
    return Gate


@pytest.fixture
def until():
    """A function that waits until its argument, a function, returns True: another thread changes something."""

    def wait(holds):
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    return wait


@pytest.fixture(scope="module")
def puzzles():
    """24 Sudokus with the puzzle identifiers of :func:`engine_rows.tiny`."""
    inputs = generate(24, 4, np.random.default_rng(1)).inputs
    return [Puzzle(one, index % 3) for index, one in enumerate(inputs)]


@pytest.fixture
def exact_rows():
    """Skips the test if rows depend on each other in the last bits."""
    if not rows_are_exact():
        pytest.skip("on the reference backend rows are only close")
